"""What is wrong with a study file and only shows when several keys are seen together."""

from __future__ import annotations

from collections.abc import Callable

from transfer_bo.errors import StudyFileError, TransferError
from transfer_bo.scale import Ladder, Scale, default_cost
from transfer_bo.space import KINDS
from transfer_bo.study_file.schema import StudyFile

__all__ = ["check_together"]

ELEMENTWISE = ("adamw", "adam", "sgd")
"""Optimizers whose step on a part of a tensor is that part of its step."""


def check_together(study_file: StudyFile) -> None:
    """Refuse a study file whose keys do not go together.

    Raises:
        StudyFileError: For the first thing that is wrong, naming file, key and value.
    """
    _check_ladder_and_space(study_file)
    _check_model(study_file)
    _check_adapter(study_file)
    _check_modules(study_file)
    _check_source_studies(study_file)
    _check_nodes(study_file)
    _check_trunk(study_file)
    _check_optimizer(study_file)
    _check_subset(study_file)
    if study_file.command is None:
        _check_scales(study_file)  # what a program of the user's own can train is not known here
    else:
        _check_command(study_file)
    _check_costs(study_file)


def _check_ladder_and_space(study_file: StudyFile) -> None:
    builds: dict[str, Callable[[], object]] = {
        "ladder.rungs": lambda: Ladder(study_file.proxies),
        "ladder.target": lambda: Ladder(study_file.proxies).register(study_file.target),
        "ladder.base": lambda: Ladder(study_file.proxies).register(study_file.base),
        "space": lambda: study_file.hp_space,
    }
    for key, build in builds.items():
        try:
            build()
        except TransferError as error:
            raise StudyFileError(f"{study_file.path}: {key}: {error}") from None


def _check_model(study_file: StudyFile) -> None:
    model = study_file.model
    if model.build is None:
        return

    if study_file.command is not None:
        raise study_file.error(
            "model.build", "[command] trains with a program of its own; leave one of the two out."
        )
    unused = sorted(model.model_fields_set - {"build"})
    if unused:
        raise study_file.error(
            f"model.{unused[0]}",
            "this is of the reference transformer, which model.build replaces; leave it out.",
        )


def _check_adapter(study_file: StudyFile) -> None:
    if study_file.adapter is None:
        return
    if study_file.command is not None or study_file.model.build is not None:
        raise StudyFileError(
            f"{study_file.path}: [adapter] is of the reference transformer, which "
            f"{'[command]' if study_file.command else 'model.build'} replaces; leave one of the two out."
        )
    if "rank" not in study_file.base:
        return
    if study_file.adapter.method == "ether":
        raise StudyFileError(
            f"{study_file.path}: adapter.method = 'ether' has no rank; leave rank out of the ladder."
        )
    if "rank" in study_file.adapter.model_fields_set:
        raise study_file.error("adapter.rank", "the ladder gives it too; leave it out of one of the two.")


def _check_modules(study_file: StudyFile) -> None:
    if study_file.per_module is None:
        return

    for key in ("types", "depth"):
        for kind in getattr(study_file.per_module, key) or []:
            if kind not in KINDS:
                raise study_file.error(
                    f"per_module.{key}", f"{kind!r} is no known kind; use some of {', '.join(KINDS)}."
                )
    if "forward" in (study_file.per_module.depth or []):
        raise study_file.error("per_module.depth", "the places of 'forward' have no depth; leave it out.")

    if study_file.command is not None:
        raise StudyFileError(
            f"{study_file.path}: per_module goes with the reference trainer, whose module types are known; "
            'with [command], list the multipliers in [space], as "lr.embedding" = {}.'
        )


def _check_trunk(study_file: StudyFile) -> None:
    if study_file.training.trunk and study_file.training.schedule != "wsd":
        raise study_file.error(
            "training.trunk", 'only runs with schedule = "wsd" have a stable part; set it.'
        )
    if study_file.training.trunk and study_file.run.shared_seeds:
        raise study_file.error(
            "run.shared_seeds",
            "the seed of runs that share a trunk follows from their HPs; leave it out.",
        )


def _check_nodes(study_file: StudyFile) -> None:
    run = study_file.run
    if run.nodes == 1:
        return
    if run.ranks % run.nodes:
        raise study_file.error("run.ranks", f"set it to a multiple of run.nodes = {run.nodes}.")
    if run.workers > 1:
        raise study_file.error(
            "run.workers", "a trial on several nodes uses all of them; set it to 1, or run.nodes to 1."
        )
    if run.runner == "ray":
        raise study_file.error("run.nodes", "Ray itself spreads a trial over nodes; leave it out.")


def _check_optimizer(study_file: StudyFile) -> None:
    run = study_file.run
    if run.parallel == "fsdp2" and run.ranks > 1:
        optimizer = study_file.parametrization.optimizer
        if optimizer not in ELEMENTWISE:
            raise study_file.error(
                "parametrization.optimizer",
                'it needs whole tensors, which run.parallel = "fsdp2" splits over ranks; use "ddp", '
                f"or one of {', '.join(ELEMENTWISE)}.",
            )


def _check_source_studies(study_file: StudyFile) -> None:
    for i, source in enumerate(study_file.past):
        key = f"{study_file.path}: past[{i}]"
        if (source.runs is None) == (source.storage is None):
            raise StudyFileError(
                f'{key}: give either runs = "old.csv" or storage = "sqlite:///old.db", to say where they are.'
            )
        if source.study is not None and source.storage is None:
            raise StudyFileError(
                f"{key}.study = {source.study!r}: a table holds no study; leave this key out."
            )

    labels = [source.label for source in study_file.past]
    repeated = next((label for label in labels if labels.count(label) > 1), None)
    if repeated is not None:
        raise StudyFileError(
            f"{study_file.path}: past: two source studies are called {repeated!r}; give each a name."
        )


def _check_command(study_file: StudyFile) -> None:
    """A list for a program, one string for the shell, and not by accident the other one."""
    command = study_file.command
    assert command is not None
    if command.shell != isinstance(command.run, str):
        raise study_file.error(
            "command.run",
            "with shell = true give one string."
            if command.shell
            else "give a list of arguments, or shell = true if the shell is meant to read it.",
        )
    if study_file.training.model_fields_set:
        raise study_file.error(
            "training", "this is of the reference trainer, which [command] replaces; leave it out."
        )
    if not command.run:
        raise study_file.error("command.run", "it is empty; give a program and its arguments.")


def _check_scales(study_file: StudyFile) -> None:
    """Whether the reference trainer can train at each scale."""
    rungs = len(study_file.ladder.rungs)
    scales = {f"ladder.rungs[{i}]": scale for i, scale in enumerate(study_file.proxies[:rungs])}
    scales |= {"ladder.target": study_file.target, "ladder.base": study_file.base}
    ranks, head_size = study_file.run.ranks, study_file.model.head_size

    for key, scale in scales.items():
        if scale.batch % ranks:
            raise StudyFileError(
                f"{study_file.path}: {key}.batch = {scale.batch}: set it to a multiple of "
                f"run.ranks = {ranks}, so that every process gets the same share."
            )
        if study_file.model.build is None and scale.width % head_size:
            raise StudyFileError(
                f"{study_file.path}: {key}.width = {scale.width}: set it to a multiple of "
                f"model.head_size = {head_size}."
            )
        if study_file.model.build is None:
            _check_experts(study_file, key, scale)
            _check_rank(study_file, key, scale)
        step = scale.batch * study_file.data.context
        if scale.tokens < step:
            raise StudyFileError(
                f"{study_file.path}: {key}.tokens = {scale.tokens}: that is less than one step of "
                f"batch x context = {step} tokens; set it higher."
            )


def _check_subset(study_file: StudyFile) -> None:
    """Whether subsets of the data go with the rest, and hold a batch each."""
    subset = study_file.data.subset
    if subset is None:
        return

    if study_file.command is not None:
        raise study_file.error(
            "data.subset", "a program of your own chooses its data itself; leave one of the two out."
        )
    if study_file.training.trunk:
        raise study_file.error(
            "training.trunk", "runs on different parts of the data share none; leave one of the two out."
        )
    if subset.method == "gradient" and study_file.run.ranks > 1:
        raise study_file.error(
            "run.ranks", 'gradients of a subset are compared in one process; set 1, or method = "random".'
        )
    for scale in study_file.proxies:
        step = scale.batch * study_file.data.context
        if scale.data_fraction * scale.tokens < step:
            raise study_file.error(
                "data.subset.fraction",
                f"of {scale.tokens} tokens {scale.data_fraction:g} is less than one batch of {step}; "
                "set it higher.",
            )


def _check_experts(study_file: StudyFile, key: str, scale: Scale) -> None:
    """Whether the reference transformer can have the experts of a scale."""
    model = study_file.model
    for axis in ("experts", "top_k"):
        if axis in scale and axis in model.model_fields_set:
            raise study_file.error(f"model.{axis}", f"{key} gives it too; leave it out of one of the two.")
    experts, top_k = scale.get("experts", model.experts), scale.get("top_k", model.top_k)

    if experts is None and (top_k > 1 or "top_k" in scale or "expert_width" in scale):
        raise StudyFileError(
            f"{study_file.path}: {key} has experts' sizes, but the model has none; set model.experts, or "
            "experts in every rung and the target."
        )
    if experts is not None and top_k > experts:
        raise StudyFileError(
            f"{study_file.path}: {key}: top_k = {top_k} is more than experts = {experts}; set it to at most "
            "the number of experts."
        )


def _check_rank(study_file: StudyFile, key: str, scale: Scale) -> None:
    """Whether adapters can have the rank of a scale."""
    adapter = study_file.adapter
    if adapter is None and "rank" in scale:
        raise StudyFileError(f"{study_file.path}: {key}.rank = {scale.rank}: there is no [adapter]; add it.")
    if adapter is None or adapter.method == "ether":
        return
    rank = scale.get("rank", adapter.rank)
    if rank > scale.width:
        raise StudyFileError(
            f"{study_file.path}: {key}: rank = {rank} is above width = {scale.width}; "
            "set it to at most the width."
        )


def _check_costs(study_file: StudyFile) -> None:
    if min(map(default_cost, study_file.proxies)) >= default_cost(study_file.target):
        raise StudyFileError(
            f"{study_file.path}: ladder.target = {dict(study_file.target)}: no rung is cheaper than "
            "the target; add a rung with less width, depth or tokens."
        )
