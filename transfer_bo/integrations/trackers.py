"""Trials in an experiment tracker: TensorBoard, Weights & Biases, MLflow, each by its own library.

    study.optimize(objective, n_trials=30, callbacks=[trackers.tensorboard("runs/tensorboard")])

or, for a study that already has trials, of a study file for example:

    trackers.mlflow("my study").log(study)

Each ended trial becomes one run of the tracker, with its HPs and axes of scale, its outcome, its loss and its
learning curve. The study itself is where trials are kept: a tracker that is down costs nothing but a warning.
"""

from __future__ import annotations

import math
import textwrap
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transfer_bo.attributes import PROGRESS_STEPS
from transfer_bo.errors import TransferError
from transfer_bo.quantities import counted
from transfer_bo.records import Outcome, Run, read_run
from transfer_bo.secrets import hide_passwords

__all__ = ["TrackedRun", "TrialLogger", "mlflow", "tensorboard", "wandb"]

RETRY_SECONDS = 60.0
"""After a failure the tracker is left alone for so long: its library may wait for minutes for a server."""

REASON_LENGTH = 160
"""Characters of a library's message that a warning shows."""

CURVE = "curve"
"""Name of the learning curve, apart from "loss", the final one."""


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is given of one trial."""

    study: str
    """Name of the study."""
    number: int
    """Number of the trial."""
    settings: Mapping[str, Any]
    """HPs as searched, axes of scale, and "outcome"."""
    metrics: Mapping[str, float]
    """"loss" of a finished run (nan of one that diverged) and "seconds", as far as they are known."""
    curve: Mapping[int, float]
    """Loss by progress, in thousandths of the run."""

    @property
    def name(self) -> str:
        """Name of the run, the same whenever the trial is logged."""
        return f"{self.study}-{self.number:04d}"

    @classmethod
    def of(cls, study: str, run: Run) -> TrackedRun:
        """What is logged of a trial."""
        scale = {} if run.scale is None else dict(run.scale)
        loss = math.nan if run.outcome is Outcome.DIVERGED else run.loss
        metrics = {"loss": loss, "seconds": run.seconds}
        return cls(
            study,
            run.number,
            {**run.params, **scale, "outcome": str(run.outcome)},
            {name: value for name, value in metrics.items() if value is not None},
            {round(PROGRESS_STEPS * progress): value for progress, value in run.curve.items()},
        )


class TrialLogger:
    """A callback of `study.optimize` that logs each trial when it has ended.

    If the tracker cannot be reached there is one warning, the search goes on, and what was not logged is
    logged together with a later trial, or by `log`.

    Args:
        write: Logs one run.
        tracker: Name of the tracker, for messages.
    """

    def __init__(self, write: Callable[[TrackedRun], None], tracker: str) -> None:
        self._write = write
        self._tracker = tracker
        self._waiting: dict[tuple[str, int], TrackedRun] = {}
        self._logged: set[tuple[str, int]] = set()
        self._retry_at = -math.inf

    def __call__(self, study: Any, trial: Any) -> None:
        """Log one trial, and those that wait; called by Optuna."""
        self._add(study, trial)
        if time.monotonic() >= self._retry_at:
            self._flush()

    def log(self, study: Any) -> int:
        """Log all ended trials of a study that this logger has not logged yet.

        Returns:
            The number of trials that could not be logged; a warning says why.
        """
        for trial in study.get_trials(deepcopy=False):
            self._add(study, trial)
        self._flush()
        return len(self._waiting)

    def _add(self, study: Any, trial: Any) -> None:
        run = read_run(trial)
        key = (study.study_name, run.number)
        if run.outcome.has_ended and key not in self._logged:
            self._waiting[key] = TrackedRun.of(study.study_name, run)

    def _flush(self) -> None:
        for key, run in list(self._waiting.items()):
            try:
                self._write(run)
            except Exception as error:  # whatever a library raises: a tracker must not end a search
                self._retry_at = time.monotonic() + RETRY_SECONDS
                reason = hide_passwords(" ".join(str(error).split())) or type(error).__name__
                reason = textwrap.shorten(reason, REASON_LENGTH, placeholder=" ...")
                warnings.warn(
                    f"{self._tracker} does not take trials ({reason}): the study keeps all of them, and "
                    f"{counted(len(self._waiting), 'waits', 'wait')} to be logged with a later one or "
                    "by .log(study).",
                    stacklevel=3,
                )
                return
            self._logged.add(key)
            del self._waiting[key]


def tensorboard(folder: str | Path) -> TrialLogger:
    """Log trials to event files, a folder for each trial; the HParams page compares them.

    Args:
        folder: Where `tensorboard --logdir` looks.

    Raises:
        TransferError: if TensorBoard is not installed.
    """
    _require("tensorboard")

    def write(run: TrackedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        path = Path(folder) / run.name
        for old in path.glob("events.out.tfevents.*"):
            old.unlink()  # of the same trial, logged before
        with SummaryWriter(str(path)) as writer:
            for step, loss in run.curve.items():
                writer.add_scalar(CURVE, loss, step)
            settings = {name: _plain(value) for name, value in run.settings.items()}
            writer.add_hparams(settings, dict(run.metrics) or {"loss": math.nan}, run_name=".")

    return TrialLogger(write, "TensorBoard")


def wandb(project: str, **options: Any) -> TrialLogger:
    """Log trials to Weights & Biases, a run for each trial, all of a study in one group.

    Args:
        project: Name of the project.
        options: Of `wandb.init`, such as `mode="offline"` or `entity`.

    Raises:
        TransferError: if the library is not installed.
    """
    _require("wandb")

    def write(run: TrackedRun) -> None:
        import wandb as library

        started = library.init(
            project=project,
            **{
                "id": run.name,
                "name": run.name,
                "group": run.study,
                "resume": "allow",
                "reinit": "create_new",
                **options,
            },
            config=dict(run.settings),
        )
        for step, loss in run.curve.items():
            started.log({CURVE: loss}, step=step)
        started.summary.update(dict(run.metrics))
        started.finish()

    return TrialLogger(write, "Weights & Biases")


def mlflow(experiment: str, tracking_uri: str | None = None) -> TrialLogger:
    """Log trials to MLflow, a run for each trial.

    Args:
        experiment: Its name; it is created if there is none.
        tracking_uri: Of the server or the store; by default MLflow's own, `MLFLOW_TRACKING_URI`.

    Raises:
        TransferError: if the library is not installed.
    """
    _require("mlflow")

    def write(run: TrackedRun) -> None:
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        client = MlflowClient(tracking_uri)
        found = client.get_experiment_by_name(experiment)
        parent = client.create_experiment(experiment) if found is None else found.experiment_id
        same = f"attributes.run_name = '{run.name}'"
        for old in client.search_runs([parent], same):
            client.delete_run(old.info.run_id)  # of the same trial, logged before

        now = int(1000 * time.time())
        metrics = [Metric(name, value, now, 0) for name, value in run.metrics.items()]
        metrics += [Metric(CURVE, loss, now, step) for step, loss in run.curve.items()]
        params = [Param(name, str(value)) for name, value in run.settings.items()]
        made = client.create_run(parent, run_name=run.name, tags={"study": run.study})
        client.log_batch(made.info.run_id, metrics=metrics, params=params)
        client.set_terminated(made.info.run_id)

    return TrialLogger(write, "MLflow")


def _require(library: str) -> None:
    if find_spec(library) is None:
        raise TransferError(f'{library} is not installed; pip install {library}, or "transfer-bo[trackers]".')


def _plain(value: Any) -> Any:
    """A value as TensorBoard takes it: a number, a text or a truth value."""
    return value if isinstance(value, bool | int | float | str) else str(value)
