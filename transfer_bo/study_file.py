"""The study file: one TOML file that says everything a study is, checked before anything is written.

A study file in full (every section and key; those with a value after `#` may be left out):

    name = "sotu_lm"
    seed = 0                          # 0

    [data]
    source = "sotu"                   # "sotu"; or a folder of text files, or tokens in a .bin file
    context = 128                     # 128; bytes or tokens per sequence
    token_dtype = "uint16"            # "uint16"; of a .bin file, or "uint32"

    [model]
    head_size = 16                    # 16; width / head_size is the number of attention heads
    mlp_ratio = 4                     # 4; the MLP's width / width

    [[ladder.rungs]]                  # the proxies; a ladder may grow later, at its end
    width = 32
    depth = 2
    batch = 16                        # sequences per step
    tokens = 300_000                  # length of a training run
    [ladder.target]                   # the run that is worth the trouble
    width = 128
    depth = 4
    batch = 16
    tokens = 2_500_000
    # [ladder.base]                   # where base coordinates are defined; the first rung

    [parametrization]
    rule = "complete_d_p"             # "complete_d_p"
    alpha = 1.0                       # 1.0

    [space]                           # name -> low, high, default; what is not given: the table of kinds
    lr = { low = 0.0005, high = 0.03, default = 0.004 }
    "lr.embedding" = {}

    # [per_module]                    # multipliers of HPs in [space]; others than of lr may harm at scale
    # types = ["lr"]                  # ["lr"]; kinds with one for each module type (residual: each branch)
    # depth = ["lr"]                  # ["lr"]; kinds with a profile over depth
    # depth_knots = 2                 # 2; numbers per profile
    # global_share = 0.3              # 0.3; of the budget for [space] alone, before the trust region
    # prior = "none"                  # "none"; "sharpness": learning rates start at the ratios of 2502.19002

    # [[past]]                        # runs of a past study as prior data; may be added later
    # runs = "old.csv"                # a CSV or Parquet file with columns width, depth, batch, tokens, loss
    # storage = "sqlite:///old.db"    # or an Optuna storage
    # study = "old"                   # (the one it holds); name of the study in the storage
    # name = "last year"              # (the study's or the file's); how the report calls it
    # loss = "loss"                   # "loss"; column of the metric
    # hps = { lr = "log" }            # (all); its HPs: "log", "linear", "one_minus" or "categorical"
    # axes = ["width", "depth"]       # (all four); columns that are axes ...
    # scale = { batch = 16, tokens = 300_000 }   # ... and where it ran along the others

    [budget]
    target_runs = 1.5                 # compute for tuning, in runs at the target
    trials = 100                      # (no limit)

    [run]
    workers = 2                       # 1; local processes, each with GPUs of its own if there are any
    threads = 1                       # 1; per worker
    out = "runs/sotu_lm"              # "runs/<name>"
    storage = "sqlite:///study.db"    # study.db in `out`; or postgresql://, journal:///, grpc://host:port
    checkpoints = "checkpoints"       # "checkpoints" in `out`; to resume elsewhere, on a shared disk
    checkpoint_seconds = 60.0         # 60; between two checkpoints of a trial
    ranks = 1                         # 1; processes (and GPUs) per trial, started by torchrun
    parallel = "ddp"                  # "ddp"; or "fsdp2"
    runner = "local"                  # "local": processes here; or "ray": tasks on a Ray cluster

    # [command]                       # train with a program of your own in the place of the reference trainer
    # run = ["python", "train.py", "--lr", "{lr}", "--trial", "{input}"]   # see `transfer_bo.runners.external_program`
    # shell = false                   # true: `run` is one string for the shell
    # env = { WANDB_MODE = "offline" }
    # coordinates = "raw"             # "raw"; "base" if the program applies a parametrization to its HPs

    [verify]
    control = true                    # true: also run the defaults at the target, to judge the claim

Relative paths are relative to the study file, so that every command finds the same study from any folder.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from transfer_bo.errors import TransferError
from transfer_bo.scale import Ladder, Scale, default_cost
from transfer_bo.space import HP, KINDS, Space

__all__ = ["StudyFile", "load_study_file"]


def _whole(value: Any) -> Any:
    # TOML writes 2e6 as a float; strict integers would refuse it.
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole), Field(gt=0)]
Positive = Annotated[float, Field(gt=0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Data(_Section):
    """The text to train on."""

    source: str = "sotu"
    context: Whole = 128
    token_dtype: Literal["uint16", "uint32"] = "uint16"


class Model(_Section):
    """The reference transformer's settings that do not scale."""

    head_size: Whole = 16
    mlp_ratio: Whole = 4


class Rung(_Section):
    """One scale: every axis that the parametrization knows."""

    width: Whole
    depth: Whole
    batch: Whole
    tokens: Whole

    @property
    def scale(self) -> Scale:
        """The same as a `Scale`."""
        return Scale(self.model_dump())


class LadderSection(_Section):
    """The proxies and the target."""

    rungs: list[Rung]
    target: Rung
    base: Rung | None = None


class ParametrizationSection(_Section):
    """Which rule carries HPs from the base to a scale."""

    rule: str = "complete_d_p"
    alpha: Annotated[float, Field(ge=0.5, le=1.0)] = 1.0


class Bounds(_Section):
    """The range of one HP; what is not given comes from the table of kinds."""

    low: float | None = None
    high: float | None = None
    default: float | None = None


class PerModule(_Section):
    """Which kinds of HPs get multipliers per module type, and which a profile over depth.

    Learning rates unless asked otherwise: their multipliers kept their worth at larger scales, those of
    init_std and residual did harm where training was longer (studies/per_module).
    """

    types: list[str] = ["lr"]
    depth: list[str] = ["lr"]
    depth_knots: Annotated[Whole, Field(ge=2)] = 2
    prior: Literal["none", "sharpness"] = "none"
    global_share: Annotated[float, Field(ge=0, lt=1)] = 0.3


class Budget(_Section):
    """What the search may spend."""

    target_runs: Positive
    trials: Whole | None = None


class RunSection(_Section):
    """Where trials run and where results are kept."""

    workers: Whole = 1
    threads: Whole = 1
    out: str | None = None
    storage: str | None = None
    checkpoints: str | None = None
    checkpoint_seconds: Positive = 60.0
    ranks: Whole = 1
    parallel: Literal["ddp", "fsdp2"] = "ddp"
    runner: Literal["local", "ray"] = "local"


class CommandSection(_Section):
    """A training program of the user's own."""

    run: list[str] | str
    shell: bool = False
    env: dict[str, str] = {}
    coordinates: Literal["base", "raw"] = "raw"


class VerifySection(_Section):
    """What runs at the target when the search is over."""

    control: bool = True


class Past(_Section):
    """The runs of a past study, see `transfer_bo.run_table.warm_start`."""

    runs: str | None = None
    storage: str | None = None
    study: str | None = None
    name: str | None = None
    axes: list[str] | None = None
    hps: dict[str, Literal["log", "linear", "one_minus", "categorical"]] | None = None
    loss: str = "loss"
    scale: dict[str, Positive] | None = None

    @property
    def label(self) -> str:
        """The name under which the runs are kept: the one given, the study's, or the file's."""
        place = (self.runs or self.storage or "").rstrip("/").rpartition("/")[2]
        return self.name or self.study or place.partition("?")[0].partition(".")[0] or "past"

    def place(self, folder: Path) -> str:
        """Where the runs are; a relative file is relative to the folder."""
        return str((folder / self.runs).resolve()) if self.runs else _beside(folder, self.storage or "")


def _beside(folder: Path, url: str) -> str:
    """A storage's address with its file, if it is one, made absolute."""
    for scheme in ("sqlite:///", "journal:///"):
        if url.startswith(scheme):
            return f"{scheme}{(folder / url.removeprefix(scheme)).resolve()}"
    return url


class StudyFile(_Section):
    """A checked study file. Build it with `load_study_file`."""

    path: Path
    name: Name
    seed: Annotated[int, Field(ge=0)] = 0
    data: Data = Data()
    model: Model = Model()
    ladder: LadderSection
    parametrization: ParametrizationSection = ParametrizationSection()
    space: dict[str, Bounds]
    per_module: PerModule | None = None
    past: list[Past] = []
    budget: Budget
    run: RunSection = RunSection()
    command: CommandSection | None = None
    verify: VerifySection = VerifySection()

    @property
    def proxies(self) -> list[Scale]:
        """The ladder's rungs, in the file's order."""
        return [rung.scale for rung in self.ladder.rungs]

    @property
    def target(self) -> Scale:
        """The scale to project to."""
        return self.ladder.target.scale

    @property
    def base(self) -> Scale:
        """Where base coordinates are defined: `ladder.base`, or the first rung."""
        return (self.ladder.base or self.ladder.rungs[0]).scale

    @cached_property
    def hp_space(self) -> Space:
        """The searched HPs."""
        return Space(HP.of(name, **bounds.model_dump()) for name, bounds in self.space.items())

    @property
    def out(self) -> Path:
        """The folder for database, logs and report."""
        return (self.path.parent / (self.run.out or f"runs/{self.name}")).resolve()

    @property
    def checkpoints(self) -> Path:
        """The folder for checkpoints of running trials."""
        return (self.out / (self.run.checkpoints or "checkpoints")).resolve()

    @property
    def storage_url(self) -> str:
        """Optuna's storage; a relative file is relative to the study file, the default is in `out`."""
        if self.run.storage is None:
            return f"sqlite:///{self.out / 'study.db'}"
        return _beside(self.path.parent, self.run.storage)

    def stored_in(self, url: str) -> StudyFile:
        """The same study in another storage; a relative file is relative to the current folder."""
        run = self.run.model_copy(update={"storage": _beside(Path(), url)})
        return self.model_copy(update={"run": run})

    def shared(self) -> str:
        """The study file as JSON, to be kept with the study; storages, with their passwords, stay out.

        Whoever joins with it has no use for past studies: their runs are in the study by then.
        """
        plain = self.model_dump(mode="json", exclude={"path": True, "past": True, "run": {"storage"}})
        return json.dumps({**plain, "path": f"{self.name}.toml"}, sort_keys=True)

    @property
    def data_source(self) -> str:
        """`data.source`, with a path made absolute."""
        source = self.data.source
        return source if source == "sotu" else str((self.path.parent / source).resolve())

    def says(self, key: str, what: str) -> TransferError:
        """An error that names file, key and value: `file: key = value: what`."""
        value: Any = self
        for part in key.split("."):
            value = getattr(value, part, None)
        shown = value.model_dump() if isinstance(value, BaseModel) else value
        return TransferError(f"{self.path}: {key} = {shown!r}: {what}")

    def definition(self) -> dict[str, Any]:
        """What makes this study this study, by key: none of it may change once trials are stored.

        The ladder may grow at its end; target, budget, ranges, workers and folders may change. Multipliers
        of `per_module` may come and go: in a run without one it was 1. Past studies may be added.
        """
        sections: dict[str, BaseModel] = {
            "data": self.data,
            "model": self.model,
            "parametrization": self.parametrization,
        }
        if self.command is not None:
            sections = {"command": self.command, "parametrization": self.parametrization}
        flat = {f"{s}.{key}": v for s, section in sections.items() for key, v in section.model_dump().items()}
        return {
            "seed": self.seed,
            **flat,
            "ladder.base": dict(self.base),
            "ladder.rungs": [dict(scale) for scale in self.proxies],
            "space": sorted(self.space),
        }


def load_study_file(path: str | Path) -> StudyFile:
    """Read and check a study file; reads nothing else and writes nothing.

    Raises:
        TransferError: for anything that is wrong with it, naming file, key and value.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TransferError(
            f"{path}: this study file can't be read ({error.strerror}); check the path."
        ) from None
    except UnicodeDecodeError:
        raise TransferError(f"{path}: this study file is not UTF-8 text; give a TOML file.") from None
    except tomllib.TOMLDecodeError as error:
        raise TransferError(f"{path}: not valid TOML: {error}.") from None
    if "data" not in content and "command" not in content:
        raise TransferError(f"{path}: data is missing; add it.")
    if "path" in content:
        raise TransferError(_unknown(path, ("path",), content["path"]))
    try:
        study = StudyFile(path=path.absolute(), **content)
    except ValidationError as error:
        raise TransferError(_sentence(path, error)) from None
    _check_together(study)
    return study


def _check_modules(study: StudyFile) -> None:
    if study.per_module is None:
        return
    for key in ("types", "depth"):
        for kind in getattr(study.per_module, key):
            if kind not in KINDS:
                raise study.says(
                    f"per_module.{key}", f"{kind!r} is no known kind; use some of {', '.join(KINDS)}."
                )
    if study.command is not None:
        raise TransferError(
            f"{study.path}: per_module goes with the reference trainer, whose module types are known; with "
            '[command], list the multipliers in [space], as "lr.embedding" = {}.'
        )


def _check_past(study: StudyFile) -> None:
    for i, past in enumerate(study.past):
        key = f"{study.path}: past[{i}]"
        if (past.runs is None) == (past.storage is None):
            raise TransferError(
                f'{key}: give either runs = "old.csv" or storage = "sqlite:///old.db", to say where they are.'
            )
        if past.study is not None and past.storage is None:
            raise TransferError(f"{key}.study = {past.study!r}: a table holds no study; leave this out.")
    labels = [past.label for past in study.past]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise TransferError(f"{study.path}: past: two past studies are called {twice!r}; give each a name.")


def _check_together(study: StudyFile) -> None:
    """What only shows when several keys are seen together.

    Raises:
        TransferError: for the first thing that is wrong.
    """
    for key, build in (
        ("ladder.rungs", lambda: Ladder(study.proxies)),
        ("space", lambda: study.hp_space),
    ):
        try:
            build()
        except TransferError as error:
            raise TransferError(f"{study.path}: {key}: {error}") from None
    _check_modules(study)
    _check_past(study)
    scales = {f"ladder.rungs[{i}]": scale for i, scale in enumerate(study.proxies)}
    scales |= {"ladder.target": study.target, "ladder.base": study.base}
    if study.command is not None:
        _check_command(study, study.command)
        scales = {}  # what a program of the user's own can do is not known here
    for key, scale in scales.items():
        if scale.batch % study.run.ranks:
            raise TransferError(
                f"{study.path}: {key}.batch = {scale.batch}: set it to a multiple of "
                f"run.ranks = {study.run.ranks}, so that every process gets as much."
            )
        if scale.width % study.model.head_size:
            raise TransferError(
                f"{study.path}: {key}.width = {scale.width}: set it to a multiple of "
                f"model.head_size = {study.model.head_size}."
            )
        if scale.tokens < scale.batch * study.data.context:
            raise TransferError(
                f"{study.path}: {key}.tokens = {scale.tokens}: that is less than one step of "
                f"batch x context = {scale.batch * study.data.context} tokens; set it higher."
            )
    costs = [default_cost(scale) for scale in study.proxies]
    if min(costs) >= default_cost(study.target):
        raise TransferError(
            f"{study.path}: ladder.target = {dict(study.target)}: no rung is cheaper than "
            "the target; add a rung with less width, depth or tokens."
        )


def _check_command(study: StudyFile, command: CommandSection) -> None:
    """A list for a program, one string for the shell, and not by accident the other one."""
    if command.shell != isinstance(command.run, str):
        raise study.says(
            "command.run",
            "with shell = true give one string."
            if command.shell
            else "give a list of arguments, or shell = true if the shell is meant to read it.",
        )
    if not command.run:
        raise study.says("command.run", "it is empty; give a program and its arguments.")


def _key(location: tuple[int | str, ...]) -> str:
    """`("ladder", "rungs", 0, "width")` -> `ladder.rungs[0].width`; a dotted name is quoted as in TOML."""
    key = ""
    for part in location:
        if isinstance(part, int):
            key += f"[{part}]"
        else:
            key += ("." if key else "") + (f'"{part}"' if "." in part else part)
    return key


def _unknown(path: Path, location: tuple[int | str, ...], value: Any) -> str:
    # Walk down the models to list the keys that would be known at this place.
    section: Any = StudyFile
    for part in location[:-1]:
        if part in section.model_fields:  # not for an index of a list or an HP's name
            section = section.model_fields[part].annotation
        for inner in getattr(section, "__args__", ()):  # list[Rung], Rung | None, dict[str, Bounds]
            if hasattr(inner, "model_fields"):
                section = inner
    known = [name for name in section.model_fields if name != "path"]
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known keys there are {', '.join(known)}."
    return f"{path}: {_key(location)} = {value!r}: unknown key; {hint}"


def _sentence(path: Path, error: ValidationError) -> str:
    """Pydantic's findings as one sentence of ours: the first, an unknown key before all others."""
    found = error.errors(include_url=False)
    # A misspelt key is also a missing one: the unknown key is the better message.
    first = min(found, key=lambda e: e["type"] != "extra_forbidden")
    location, value = first["loc"], first["input"]
    if first["type"] == "extra_forbidden":
        return _unknown(path, location, value)
    if first["type"] == "missing":
        return f"{path}: {_key(location)} is missing; add it."
    if first["type"] == "string_pattern_mismatch":
        return f"{path}: {_key(location)} = {value!r}: use letters, digits, '.', '_' and '-' only."
    return f"{path}: {_key(location)} = {value!r}: {first['msg'].replace('Input should be', 'it should be')}."
