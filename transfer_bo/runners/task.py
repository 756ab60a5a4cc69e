"""What one trial of a study file does: ask for scale and HPs, train, report the curve.

It trains in this process with the reference trainer, in several processes under torchrun, or with a program
of the user's own.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial
from torch import nn

from transfer_bo.attributes import (
    ACCUMULATE_ATTR,
    OWNER_LOSSES_ATTR,
    PROGRESS_STEPS,
    PURPOSE_ATTR,
    REPLICA_ATTR,
)
from transfer_bo.errors import TransferError
from transfer_bo.parametrization import RULES, parametrize
from transfer_bo.runners.external_program import Program
from transfer_bo.runners.objective import is_out_of_memory
from transfer_bo.scale import Ladder, Scale, default_cost
from transfer_bo.space import DEPTH, split_name
from transfer_bo.study_file import StudyFile
from transfer_bo.training import build_transformer, count_flops, load_text, train
from transfer_bo.training.checkpoint import remove_checkpoint

__all__ = ["Attempt", "CommandTask", "StudyTask", "Task", "make_task"]

REPLICA_SEEDS = 10**9
"""Where the seeds of replicas begin, beyond those of any search."""


@dataclass(frozen=True)
class Attempt:
    """What is to be trained."""

    number: int
    scale: Scale
    hps: dict[str, float]
    seed: int
    accumulate: int
    """Parts in which a process's share of the batch goes through the model."""
    deaths: int
    report: Callable[[float, float], None]
    """Called with (progress, loss)."""


class Task(ABC):
    """A study file made ready to run. Writes nothing before it is called.

    Call it with an Optuna trial to run that trial; wrap it in `transfer_bo.objective` first.

    Args:
        study_file: The checked study file.
        stopping: Whether this process has been asked to end: the trial then writes a checkpoint and stops.
    """

    def __init__(self, study_file: StudyFile, stopping: Callable[[], bool] = lambda: False) -> None:
        self.file = study_file
        self.ladder = Ladder(study_file.proxies)
        self.space = study_file.hp_space
        self.stopping = stopping

    coordinates = "base"
    """What the HPs are to the surrogate."""

    @abstractmethod
    def cost(self, scale: Scale) -> float:
        """What a run at a scale costs."""

    @abstractmethod
    def run(self, attempt: Attempt) -> float:
        """Train; the final loss."""

    @property
    def budget(self) -> float:
        """What the search may spend, in the unit of the cost."""
        return self.file.budget.target_runs * self.cost(self.file.target)

    def definition(self) -> dict[str, Any]:
        """What must not change once trials are stored."""
        return self.file.definition()

    def __call__(self, trial: optuna.Trial) -> float:
        """Run one trial.

        Out of memory, it is run once more with the same global batch in two parts.

        Returns:
            The final loss.

        Raises:
            optuna.TrialPruned: if the pruner finds its curve hopeless.
            transfer_bo.Diverged: if training blows up.
            transfer_bo.errors.Preempted: if it was stopped.
        """
        scale = self.ladder.suggest(trial)
        hps = self.space.suggest(trial)

        def report(progress: float, loss: float) -> None:
            trial.report(loss, step=round(PROGRESS_STEPS * progress))
            if trial.should_prune():
                raise optuna.TrialPruned

        # Each trial of the search has weights and data order of its own, so that the surrogate sees the true
        # noise. Runs at the target share theirs, so that suggestion and control differ in HPs only.
        attrs = trial.user_attrs
        seed = 1000 * self.file.seed + (0 if PURPOSE_ATTR in attrs else trial.number + 1)
        if REPLICA_ATTR in attrs:  # the same in all runs of this number, and in no other run
            seed = REPLICA_SEEDS + 1000 * self.file.seed + attrs[REPLICA_ATTR]
        deaths, parts = attrs.get(OWNER_LOSSES_ATTR, 0), attrs.get(ACCUMULATE_ATTR, 1)
        try:
            return self.run(Attempt(trial.number, scale, hps, seed, parts, deaths, report))
        except Exception as error:
            if parts > 1 or not is_out_of_memory(error):
                raise
        # Only here, behind the exception, are the tensors that its traceback held free.
        _free_memory()
        trial.set_user_attr(ACCUMULATE_ATTR, 2)
        return self.run(Attempt(trial.number, scale, hps, seed, 2, deaths, report))

    def after(self, trial: FrozenTrial) -> None:
        """Clear away what a trial that has ended leaves behind."""
        remove_checkpoint(self.checkpoint(trial.number))
        shutil.rmtree(self.checkpoint(trial.number).with_suffix(""), ignore_errors=True)

    def checkpoint(self, number: int) -> Path:
        """The file for a trial's checkpoint; a program's folder has the same name without its ending."""
        return self.file.checkpoints / f"trial-{number}.pt"

    def run_program(self, program: Program, attempt: Attempt, more: Mapping[str, Any]) -> float:
        """Run a program as a trial; its loss."""
        folder = self.checkpoint(attempt.number).with_suffix("")
        with contextlib.suppress(OSError):  # it may do without
            folder.mkdir(parents=True, exist_ok=True)
        plain = {
            "trial": attempt.number,
            "seed": attempt.seed,
            "attempt": attempt.deaths + 1,
            "accumulate": attempt.accumulate,
        }
        return program(
            {**plain, **attempt.scale, **attempt.hps},
            {**plain, "scale": dict(attempt.scale), "hps": attempt.hps, **more},
            report=attempt.report,
            stop=self.stopping,
            checkpoint=folder,
        )


def _free_memory() -> None:
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class StudyTask(Task):
    """The reference transformer on text, parametrized, here or under torchrun.

    Raises:
        TransferError: if the text is missing or too short, the rule is not known, or an HP names a group that
            the model does not have.
    """

    def __init__(self, study_file: StudyFile, stopping: Callable[[], bool] = lambda: False) -> None:
        super().__init__(study_file, stopping)
        # The reference trainer steps with AdamW.
        rules = [n for n, rule in RULES.items() if rule.optimizer == "adamw" and rule.matrices is None]
        if study_file.parametrization.rule not in rules:
            raise study_file.says("parametrization.rule", f"no such rule; use one of {', '.join(rules)}.")
        try:
            self.corpus = load_text(study_file.data_source, token_dtype=study_file.data.token_dtype)
        except TransferError as error:
            raise study_file.says("data.source", str(error)) from error
        shortest = min(len(self.corpus.train), len(self.corpus.heldout))
        if shortest <= study_file.data.context:
            raise study_file.says(
                "data.context",
                f"the held-out text has only {shortest} tokens; give a longer text or a shorter context.",
            )
        self._parametrizations: dict[Scale, Any] = {}
        self._costs: dict[Scale, float] = {}
        if study_file.per_module is not None:
            base, chosen = (
                self.parametrization(study_file.base),
                study_file.per_module.model_dump(exclude={"global_share"}),
            )
            try:
                self.space = self.space.with_modules(base, **chosen)
            except TransferError as error:
                raise TransferError(f"{study_file.path}: per_module: {error}") from None
        self._check_groups()

    def _check_groups(self) -> None:
        p = self.parametrization(self.file.base)
        of_tensors = sorted({label for labels in p.groups.values() for label in labels})
        for name in self.space.hps:
            kind, group = split_name(name)
            known = sorted(p.residual_branches) if kind == "residual" else of_tensors
            if group is not None and not group.startswith(DEPTH) and group not in known:
                raise TransferError(
                    f'{self.file.path}: space."{name}": the model has no group {group!r}; '
                    f"use one of {', '.join(known)}."
                )

    def build(self, scale: Scale) -> nn.Module:
        """The model at a scale, not yet initialised."""
        return build_transformer(scale, vocab_size=self.corpus.vocab_size, **self.file.model.model_dump())

    def parametrization(self, scale: Scale) -> Any:
        """The rule from the base to a scale; kept, for it takes a few builds to find out."""
        if scale not in self._parametrizations:
            rule = self.file.parametrization
            self._parametrizations[scale] = parametrize(
                self.build, base=self.file.base, target=scale, rule=rule.rule, alpha=rule.alpha
            )
        return self._parametrizations[scale]

    def cost(self, scale: Scale) -> float:
        """What a run at a scale costs, in FLOPs."""
        if scale not in self._costs:
            self._costs[scale] = count_flops(self.build, scale, self.file.data.context)
        return self._costs[scale]

    def definition(self) -> dict[str, Any]:
        """What must not change once trials are stored: the study file's definition and the text itself."""
        digest = hashlib.sha256()
        for part in (self.corpus.train, self.corpus.heldout):
            digest.update(str(len(part)).encode())
            # A few windows tell texts apart, and a token file may be too large to read whole.
            for start in range(0, len(part), max(1, len(part) // 64)):
                digest.update(part[start : start + 1024].tobytes())
        return {**super().definition(), "data.fingerprint": digest.hexdigest()[:16]}

    def run(self, attempt: Attempt) -> float:
        """Train here, or in several processes under torchrun; held-out loss in nats per token."""
        if self.file.run.ranks == 1:
            return self.train_here(attempt, self.checkpoint(attempt.number))
        # The ranks do not talk to the storages, and have no use for their passwords.
        study = {"study": self.file.model_dump(mode="json", exclude={"run": {"storage"}, "past": True})}
        return self.run_program(_torchrun(self.file), attempt, study)

    def train_here(self, attempt: Attempt, checkpoint: Path) -> float:
        """Train in this process, as one of a process group if there is one."""
        result = train(
            self.build(attempt.scale),
            self.parametrization(attempt.scale),
            attempt.hps,
            self.corpus,
            batch=attempt.scale.batch,
            tokens=attempt.scale.tokens,
            context=self.file.data.context,
            seed=attempt.seed,
            threads=self.file.run.threads,
            report=attempt.report,
            checkpoint=checkpoint,
            checkpoint_seconds=self.file.run.checkpoint_seconds,
            stop=self.stopping,
            accumulate=attempt.accumulate,
            parallel=self.file.run.parallel,
        )
        return float(result.loss)


def _torchrun(study_file: StudyFile) -> Program:
    """The trainer in several processes of this machine; one that dies ends them all."""
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python"]
    run += [
        f"--nproc-per-node={study_file.run.ranks}",
        sys.executable,
        "-m",
        "transfer_bo.runners.torchrun_entry",
    ]
    return Program(run, shell=False, env={}, folder=Path.cwd())


class CommandTask(Task):
    """A training program of the user's own: see `transfer_bo.runners.external_program`."""

    coordinates = "raw"

    def __init__(self, study_file: StudyFile, stopping: Callable[[], bool] = lambda: False) -> None:
        super().__init__(study_file, stopping)
        assert study_file.command is not None
        command = study_file.command
        self.coordinates = command.coordinates
        self._program = Program(command.run, command.shell, command.env, study_file.path.parent)
        names = ("trial", "seed", "attempt", "accumulate", "input", "output", "checkpoint")
        values = dict.fromkeys([*names, *study_file.target, *study_file.space], "")
        try:
            self._program.command(values)  # a misspelt {name} is found out before the first trial
        except TransferError as error:
            raise TransferError(f"{study_file.path}: {error}") from None

    def cost(self, scale: Scale) -> float:
        """Training FLOPs up to a constant."""
        return default_cost(scale)

    def run(self, attempt: Attempt) -> float:
        """Run the program; the loss it says."""
        return self.run_program(self._program, attempt, {})


def make_task(study_file: StudyFile, stopping: Callable[[], bool] = lambda: False) -> Task:
    """What a study file's trials do."""
    return (StudyTask if study_file.command is None else CommandTask)(study_file, stopping)
