"""What every trial of a study file has in common: ask for scale and HPs, run, note what happened."""

from __future__ import annotations

import contextlib
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from transfer_bo.attributes import (
    ACCUMULATE_ATTR,
    OWNER_LOSSES_ATTR,
    PROGRESS_STEPS,
    PURPOSE_ATTR,
    REPLICA_ATTR,
    REUSED_ATTR,
    RUNG,
    SEED_ATTR,
    SPEED_ATTR,
)
from transfer_bo.runners.attempt import PROXY_REPORTS, Attempt
from transfer_bo.runners.external_program import Program
from transfer_bo.runners.objective import is_out_of_memory
from transfer_bo.runners.trunks import trunk_seed
from transfer_bo.scale import Ladder, Scale
from transfer_bo.study_file import StudyFile
from transfer_bo.training.checkpoint import remove_checkpoint

__all__ = ["Task"]

REPLICA_SEEDS = 10**9
"""Where the seeds of replicas begin, above those of any search."""

SEEDS_PER_STUDY = 1000
"""Distance between the seeds of two studies whose `seed` differs by 1."""

TARGET_REPORTS = 50
"""Reports of a run at the target: the more there are, the earlier one sees how it is doing."""


class Task(ABC):
    """A study file made ready to train; nothing is written before a trial is run.

    Call it with an Optuna trial to run that trial; wrap it in `transfer_bo.objective` first.

    Args:
        study_file: The checked study file.
        should_stop: Whether this process was asked to end: the trial then writes a checkpoint and stops.
    """

    coordinates = "base"
    """Coordinates of the searched HPs, "base" or "raw"."""

    def __init__(self, study_file: StudyFile, should_stop: Callable[[], bool] = lambda: False) -> None:
        self.file = study_file
        self.ladder = Ladder(study_file.proxies)
        self.space = study_file.hp_space
        self.should_stop = should_stop

    @abstractmethod
    def cost(self, scale: Scale) -> float:
        """The cost of a run at a scale."""

    @abstractmethod
    def run(self, attempt: Attempt) -> float:
        """Train, and return the final loss."""

    @property
    def budget(self) -> float:
        """Compute that the search may spend, in the unit of the cost."""
        return self.file.budget.target_runs * self.cost(self.file.target)

    def definition(self) -> dict[str, Any]:
        """What identifies the study: none of it may change once trials are stored."""
        return self.file.definition()

    def caveats(self) -> list[str]:
        """Sentences on what to check before the search is trusted; none if nothing is known."""
        return []

    def __call__(self, trial: optuna.Trial) -> float:
        """Run one trial.

        If memory runs out, it is run once more with the same global batch in twice as many parts.

        Args:
            trial: Optuna's trial, which proposes scale and HPs.

        Returns:
            The final loss.

        Raises:
            optuna.TrialPruned: If the pruner stops it.
            Diverged: If training diverges.
            Preempted: If this process was asked to end.
        """
        scale = self.ladder.suggest(trial)
        hps = self.space.suggest(trial)

        def report(progress: float, loss: float) -> None:
            trial.report(loss, step=round(PROGRESS_STEPS * progress))
            if trial.should_prune():
                raise optuna.TrialPruned

        latest: dict[str, float | None] = {}

        def speed(tokens_per_second: float) -> None:
            latest["tokens_per_second"] = tokens_per_second
            latest["utilisation"] = self.utilisation(scale, tokens_per_second)
            if is_at_target:
                trial.set_user_attr(SPEED_ATTR, dict(latest))

        attrs = trial.user_attrs
        is_at_target = PURPOSE_ATTR in attrs
        parts = attrs.get(ACCUMULATE_ATTR, self.file.training.accumulate)
        seed = attrs[SEED_ATTR] if SEED_ATTR in attrs else self._seed(trial, scale, hps)
        if self.file.shares_seeds and SEED_ATTR not in attrs:
            trial.set_user_attr(SEED_ATTR, seed)
        attempt = Attempt(
            number=trial.number,
            scale=scale,
            hps=hps,
            seed=seed,
            accumulate=parts,
            owner_losses=attrs.get(OWNER_LOSSES_ATTR, 0),
            report=report,
            speed=speed,
            reports=TARGET_REPORTS if is_at_target else PROXY_REPORTS,
            shares_trunk=self.file.training.trunk and not is_at_target,
        )
        if attempt.shares_trunk and REUSED_ATTR not in attrs:  # once: later it may find what it kept itself
            trial.set_user_attr(REUSED_ATTR, self.reused_part(attempt))
        try:
            return self._run_and_note(trial, attempt, latest)
        except Exception as error:
            if ACCUMULATE_ATTR in attrs or not is_out_of_memory(error):
                raise

        # Only here, after the exception, are the tensors free that its traceback held.
        _free_memory()
        trial.set_user_attr(ACCUMULATE_ATTR, 2 * parts)
        return self._run_and_note(trial, replace(attempt, accumulate=2 * parts), latest)

    def _run_and_note(
        self, trial: optuna.Trial, attempt: Attempt, speed: Mapping[str, float | None]
    ) -> float:
        """Run, and store the last speed with the trial: a write per report would slow down small models."""
        try:
            return self.run(attempt)
        finally:
            if speed:
                trial.set_user_attr(SPEED_ATTR, dict(speed))

    def utilisation(self, scale: Scale, tokens_per_second: float) -> float | None:
        """Share of the GPUs' peak FLOP/s that training achieves; None where the peak is not known."""
        return None

    def reused_part(self, attempt: Attempt) -> float:
        """Share of a run that another one has trained; 0 if it has to be trained from the beginning."""
        return 0.0

    def _seed(self, trial: optuna.Trial, scale: Scale, hps: Mapping[str, float]) -> int:
        """The seed of weights and data order.

        Each trial of the search has one of its own, so that the surrogate sees the true noise, or with
        `run.shared_seeds` that of its rung; but runs that share their trunk have one in common. Runs at the
        target share theirs, so that suggestion and control differ in HPs only; replicas of one number share a
        seed that no other run has.
        """
        first = SEEDS_PER_STUDY * self.file.seed
        if REPLICA_ATTR in trial.user_attrs:
            return int(REPLICA_SEEDS + first + trial.user_attrs[REPLICA_ATTR])
        if PURPOSE_ATTR in trial.user_attrs:
            return first
        if self.file.training.trunk:
            return trunk_seed(self.file, scale, hps)
        return first + 1 + (trial.params[RUNG] if self.file.shares_seeds else trial.number)

    def clean_up(self, trial: FrozenTrial) -> None:
        """Remove the checkpoints of a trial that has ended."""
        file = self.checkpoint_file(trial.number)
        remove_checkpoint(file)
        shutil.rmtree(file.with_suffix(""), ignore_errors=True)

    def checkpoint_file(self, number: int) -> Path:
        """The file for a trial's checkpoint; a program's folder has the same name without its suffix."""
        return self.file.checkpoints / f"trial-{number}.pt"

    def run_program(self, program: Program, attempt: Attempt, more: Mapping[str, Any]) -> float:
        """Run a program as a trial, and return its loss.

        Args:
            program: The program.
            attempt: What it is to train.
            more: Entries of its JSON file beyond those that every program gets.
        """
        folder = self.checkpoint_file(attempt.number).with_suffix("")
        with contextlib.suppress(OSError):  # the program may need none
            folder.mkdir(parents=True, exist_ok=True)

        plain = {
            "trial": attempt.number,
            "seed": attempt.seed,
            "attempt": attempt.owner_losses + 1,
            "accumulate": attempt.accumulate,
        }
        return program(
            {**plain, **attempt.scale, **attempt.hps},
            {**plain, "scale": dict(attempt.scale), "hps": attempt.hps, **more},
            report=attempt.report,
            should_stop=self.should_stop,
            checkpoint=folder,
            speed=attempt.speed,
        )


def _free_memory() -> None:
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
