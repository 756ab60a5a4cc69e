"""One trial of a study file: ask for scale and HPs, train, report the learning curve.

It trains in this process with the reference trainer, in several processes under torchrun, or with a program
of the user's own.
"""

from __future__ import annotations

import functools
import hashlib
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from transfer_bo.errors import StudyFileError, TransferError
from transfer_bo.parametrization import Rule, parametrize
from transfer_bo.parametrization.builds import BuildModel, build_meta
from transfer_bo.parametrization.model_file import check_logits, load_build_model
from transfer_bo.parametrization.optimizers import check_optimizer
from transfer_bo.parametrization.tables import PARAMETRIZATIONS, find_rule
from transfer_bo.runners.adapted_model import roles_of, with_adapters
from transfer_bo.runners.attempt import Attempt
from transfer_bo.runners.base_task import Task
from transfer_bo.runners.external_program import CommandError, Program
from transfer_bo.runners.subsets import all_of, check_subsets_hold_a_batch, flops_of, subset_of
from transfer_bo.runners.torchrun import endpoint_of, no_rendezvous, torchrun
from transfer_bo.runners.trunks import settings_of, steps_of, trunk_of, without_duration
from transfer_bo.scale import Scale, default_cost
from transfer_bo.space import KINDS
from transfer_bo.study_file import StudyFile
from transfer_bo.study_file.schema import PROFILE_DEPTH
from transfer_bo.training import build_transformer, count_flops, load_text, train
from transfer_bo.training.data import Corpus
from transfer_bo.training.faults import fault_from_environment
from transfer_bo.training.ranks import Ranks
from transfer_bo.training.subset import full_scale, trained_scale
from transfer_bo.verification.gpus import gpu_of_device

__all__ = ["Attempt", "CommandTask", "StudyTask", "Task", "make_task"]

N_FINGERPRINT_WINDOWS = 64
"""Windows of a text that are hashed to identify it: a token file may be too large to be read whole."""

FINGERPRINT_WINDOW = 1024
"""Tokens per window."""


class StudyTask(Task):
    """A transformer or a model of the user's own on text, parametrized, trained here or under torchrun.

    Args:
        study_file: The checked study file.
        should_stop: Whether this process was asked to end: the trial then writes a checkpoint and stops.

    Raises:
        StudyFileError: If the text is missing or too short, the model can't be built or gives no logits, the
            rule is unknown or has no table for the optimizer, or an HP names a group that the model does not
            have.
    """

    def __init__(self, study_file: StudyFile, should_stop: Callable[[], bool] = lambda: False) -> None:
        super().__init__(study_file, should_stop)
        self.rule = self._find_rule()
        endpoint_of(study_file)
        self.corpus = self._load_corpus()
        self._build_model = self._find_model()
        self._parametrizations: dict[Scale, Any] = {}
        self._costs: dict[Scale, float] = {}

        if study_file.per_module is not None:
            modules = study_file.per_module.model_dump(exclude={"global_share"})
            if modules["depth"] is None:
                modules["depth"] = ["lr"] if study_file.base.get("depth", 0) >= PROFILE_DEPTH else []
            try:
                self.space = self.space.with_modules(self.parametrization(study_file.base), **modules)
            except TransferError as error:
                raise StudyFileError(f"{study_file.path}: per_module: {error}") from None
        self._check_groups()
        check_subsets_hold_a_batch(self.file, self.corpus)

    def _find_rule(self) -> Rule:
        """The table of the study's parametrization for its optimizer."""
        section = self.file.parametrization
        if section.rule not in PARAMETRIZATIONS:
            known = ", ".join(PARAMETRIZATIONS)
            raise self.file.error("parametrization.rule", f"no such rule; use one of {known}.")
        try:
            rule = find_rule(section.rule, section.optimizer)
            rule = without_duration(rule) if self.file.training.trunk else rule
            check_optimizer(rule)
        except TransferError as error:
            raise self.file.error("parametrization.optimizer", str(error)) from None
        return rule

    def _load_corpus(self) -> Corpus:
        try:
            corpus = load_text(self.file.data_source, token_dtype=self.file.data.token_dtype)
        except TransferError as error:
            raise self.file.error("data.source", str(error)) from error

        shortest = min(len(corpus.train), len(corpus.heldout))
        if shortest <= self.file.data.context:
            raise self.file.error(
                "data.context",
                f"the held-out text has only {shortest} tokens; give a longer text or a shorter context.",
            )
        return corpus

    def _find_model(self) -> BuildModel:
        """The function that builds the model at a scale."""
        model, vocab_size = self.file.model, self.corpus.vocab_size
        if model.build is None:
            settings = model.model_dump(exclude={"build"})
            build = functools.partial(build_transformer, vocab_size=vocab_size, **settings)
            return build if self.file.adapter is None else with_adapters(self.file, self.file.adapter, build)

        try:
            build_model = load_build_model(model.build, self.file.path.parent)
            for scale in dict.fromkeys([self.file.base, *self.file.proxies, self.file.target]):
                check_logits(build_model, full_scale(scale), self.file.data.context, vocab_size)
        except TransferError as error:
            raise self.file.error("model.build", str(error)) from error
        return build_model

    def _check_groups(self) -> None:
        p = self.parametrization(self.file.base)
        for name in self.space.hps:
            try:
                p.check_hps({name: 1.0})
            except TransferError as error:
                raise StudyFileError(f'{self.file.path}: space."{name}": {error}') from None
        if names := _multiply_the_same_tensors(self.space.hps, p.groups):
            warnings.warn(
                f"{self.file.path}: {' and '.join(names)} multiply the same tensors; runs determine them "
                "worse than one of them alone.",
                stacklevel=2,
            )

    def build(self, scale: Scale) -> nn.Module:
        """The model at a scale, not yet initialised."""
        return self._build_model(full_scale(scale))

    def _build_to_train(self, scale: Scale) -> nn.Module:
        """The model, without values where it is sharded over the ranks of this process's group.

        Frozen tensors keep the values of their build, so that a model with some is built with values.
        """
        if not Ranks(self.file.run.parallel).is_sharded:
            return self.build(scale)
        model = build_meta(self.build, scale)
        return model if all(p.requires_grad for p in model.parameters()) else self.build(scale)

    def parametrization(self, scale: Scale) -> Any:
        """The settings of every tensor at a scale; kept, because finding them takes several builds."""
        if scale not in self._parametrizations:
            alpha = self.file.parametrization.alpha
            self._parametrizations[scale] = parametrize(
                self.build,
                full_scale(self.file.base),
                trained_scale(scale),
                self.rule,
                alpha,
                roles=roles_of(self.file),
            )
        return self._parametrizations[scale]

    def caveats(self) -> list[str]:
        """What the parametrization warns of at the target, such as settings that the rule moves far."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            self.parametrization(self.file.target)
        return [str(warning.message) for warning in caught if warning.category is UserWarning]

    def cost(self, scale: Scale) -> float:
        """The cost of a run at a scale, in FLOPs, that of choosing its data included."""
        if scale not in self._costs:
            self._costs[scale] = flops_of(self.file, self.corpus, self.build, scale)
        return self._costs[scale]

    def flops_per_token(self, scale: Scale) -> float:
        """FLOPs of training at a scale per token."""
        flops = count_flops(self.build, full_scale(scale), self.file.data.context)
        return flops / float(scale.tokens)

    def utilisation(self, scale: Scale, tokens_per_second: float) -> float | None:
        """Share of the GPUs' peak FLOP/s that training achieves; None where the peak is not known."""
        import torch

        gpu = gpu_of_device(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
        if gpu is None:
            return None
        flops = tokens_per_second * self.flops_per_token(scale)
        return flops / (gpu.flops_per_second * self.file.run.ranks)

    def definition(self) -> dict[str, Any]:
        """What identifies the study: the study file's definition and a fingerprint of the text."""
        digest = hashlib.sha256()
        for part in (self.corpus.train, self.corpus.heldout):
            digest.update(str(len(part)).encode())
            for start in range(0, len(part), max(1, len(part) // N_FINGERPRINT_WINDOWS)):
                digest.update(part[start : start + FINGERPRINT_WINDOW].tobytes())
        return {**super().definition(), "data.fingerprint": digest.hexdigest()[:16]}

    def run(self, attempt: Attempt) -> float:
        """Train in this process, or in several under torchrun; held-out loss in nats per token."""
        if self.file.run.ranks == 1:
            return self.train_here(attempt, self.checkpoint_file(attempt.number))

        # The ranks use no storage, and must not get its password.
        study = self.file.model_dump(mode="json", exclude={"run": {"storage"}, "past": True})
        more = {"study": study, "reports": attempt.reports, "shares_trunk": attempt.shares_trunk}
        try:
            return self.run_program(torchrun(self.file), attempt, more)
        except CommandError as error:
            raise no_rendezvous(error, self.file) or error from None

    def train_here(
        self,
        attempt: Attempt,
        checkpoint: Path | None,
        after_step: Callable[[int, nn.Module], None] | None = None,
    ) -> float:
        """Train in this process, as one of a process group if there is one.

        Args:
            attempt: What is trained.
            checkpoint: File of the checkpoint; None to keep none.
            after_step: See `transfer_bo.training.train`.
        """
        subset = subset_of(self.file, self.corpus, attempt, checkpoint)
        hooks = [
            after_step or fault_from_environment(Ranks().rank),
            None if subset is None else subset.after_step,
        ]

        result = train(
            self._build_to_train(attempt.scale),
            self.parametrization(attempt.scale),
            attempt.hps,
            subset or self.corpus,
            batch=attempt.scale.batch,
            tokens=trained_scale(attempt.scale).tokens,
            context=self.file.data.context,
            seed=attempt.seed,
            threads=self.file.run.threads,
            reports=attempt.reports,
            report=attempt.report,
            checkpoint=checkpoint,
            checkpoint_seconds=self.file.run.checkpoint_seconds,
            stop=self.should_stop,
            accumulate=attempt.accumulate,
            parallel=self.file.run.parallel,
            settings=settings_of(self.file, attempt.scale),
            speed=attempt.speed,
            after_step=all_of(hooks),
            trunk=trunk_of(self.file, attempt) if attempt.shares_trunk else None,
        )
        return float(result.loss)

    def reused_part(self, attempt: Attempt) -> float:
        """Share of a run that another one has trained; 0 if it has to be trained from the beginning."""
        if not attempt.shares_trunk or self.checkpoint_file(attempt.number).exists():
            return 0.0
        steps = steps_of(self.file, attempt.scale)
        stable_end = settings_of(self.file, attempt.scale).stable_end(steps)
        return trunk_of(self.file, attempt).kept(stable_end) / steps


class CommandTask(Task):
    """A training program of the user's own, see `transfer_bo.runners.external_program`.

    Args:
        study_file: The checked study file.
        should_stop: Whether this process was asked to end: the program then gets SIGTERM.

    Raises:
        StudyFileError: If the command has a `{name}` that is no value of a trial.
    """

    def __init__(self, study_file: StudyFile, should_stop: Callable[[], bool] = lambda: False) -> None:
        super().__init__(study_file, should_stop)
        assert study_file.command is not None
        command = study_file.command
        self.coordinates = command.coordinates
        self._program = Program(command.run, command.shell, command.env, study_file.path.parent)

        names = ("trial", "seed", "attempt", "accumulate", "input", "output", "checkpoint")
        values = dict.fromkeys([*names, *study_file.target, *study_file.space], "")
        try:
            self._program.command(values)  # finds a misspelt {name} before the first trial
        except StudyFileError as error:
            raise StudyFileError(f"{study_file.path}: {error}") from None

    def cost(self, scale: Scale) -> float:
        """The cost of a run at a scale: training FLOPs up to a constant."""
        return default_cost(scale)

    def run(self, attempt: Attempt) -> float:
        """Run the program, and return the loss that it reports."""
        return self.run_program(self._program, attempt, {})


def make_task(study_file: StudyFile, should_stop: Callable[[], bool] = lambda: False) -> Task:
    """The task of a study file's trials.

    Args:
        study_file: The checked study file.
        should_stop: Whether this process was asked to end: the trial then writes a checkpoint and stops.

    Raises:
        StudyFileError: If something that the study file names does not exist, or does not fit together.
    """
    return (StudyTask if study_file.command is None else CommandTask)(study_file, should_stop)


def _multiply_the_same_tensors(names: Iterable[str], groups: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """The first two or more multipliers of a kind that have a tensor in common, depth profiles apart.

    Args:
        names: the searched HPs.
        groups: the groups of each tensor.
    """
    searched = set(names)
    for labels in groups.values():
        for kind in KINDS:
            of_tensor = tuple(name for label in labels if (name := f"{kind}.{label}") in searched)
            if len(of_tensor) > 1:
                return of_tensor
    return ()
