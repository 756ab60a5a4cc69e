"""What one trial of a study file does: ask for scale and HPs, parametrize, train, report the curve."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import optuna
from torch import nn

from transfer_bo.errors import TransferError
from transfer_bo.history import PROGRESS_STEPS, PURPOSE_ATTR
from transfer_bo.parametrization import RULES, parametrize
from transfer_bo.scale import Ladder, Scale
from transfer_bo.space import DEPTH, split_name
from transfer_bo.study_file import StudyFile
from transfer_bo.training import build_transformer, count_flops, load_text, train

__all__ = ["StudyTask", "make_task"]


def make_task(study_file: StudyFile, stopping: Callable[[], bool] = lambda: False) -> StudyTask:
    """What a study file's trials do.

    Args:
        study_file: The checked study file.
        stopping: Whether this process has been asked to end.
    """
    return StudyTask(study_file, stopping)


class StudyTask:
    """A study file made ready to run: text loaded, model known, every name checked. Writes nothing.

    Call it with an Optuna trial to train that trial; wrap it in `transfer_bo.objective` first.

    Args:
        study_file: The checked study file.
        stopping: Whether this process has been asked to end: the trial then writes a checkpoint and stops.

    Raises:
        TransferError: if the text is missing or too short, the rule is not known, or an HP names a group that
            the model does not have.
    """

    def __init__(self, study_file: StudyFile, stopping: Callable[[], bool] = lambda: False) -> None:
        self.file = study_file
        self._stopping = stopping
        self.ladder = Ladder(study_file.proxies)
        self.space = study_file.hp_space
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

    @property
    def budget(self) -> float:
        """What the search may spend, in FLOPs."""
        return self.file.budget.target_runs * self.cost(self.file.target)

    def definition(self) -> dict[str, Any]:
        """What must not change once trials are stored: the study file's definition and the text itself."""
        digest = hashlib.sha256()
        for part in (self.corpus.train, self.corpus.heldout):
            digest.update(str(len(part)).encode())
            # A few windows tell texts apart, and a token file may be too large to read whole.
            for start in range(0, len(part), max(1, len(part) // 64)):
                digest.update(part[start : start + 1024].tobytes())
        return {**self.file.definition(), "data.fingerprint": digest.hexdigest()[:16]}

    def __call__(self, trial: optuna.Trial) -> float:
        """Train one trial.

        Returns:
            The final loss on held-out text, in nats per token.

        Raises:
            optuna.TrialPruned: if the pruner finds its curve hopeless.
            transfer_bo.Diverged: if training blows up.
        """
        scale = self.ladder.suggest(trial)
        hps = self.space.suggest(trial)

        def report(progress: float, loss: float) -> None:
            trial.report(loss, step=round(PROGRESS_STEPS * progress))
            if trial.should_prune():
                raise optuna.TrialPruned

        # Each trial of the search has weights and data order of its own, so that the surrogate sees the true
        # noise. Runs at the target share theirs, so that suggestion and control differ in HPs only.
        is_search = PURPOSE_ATTR not in trial.user_attrs
        seed = 1000 * self.file.seed + (trial.number + 1 if is_search else 0)
        result = train(
            self.build(scale),
            self.parametrization(scale),
            hps,
            self.corpus,
            batch=scale.batch,
            tokens=scale.tokens,
            context=self.file.data.context,
            seed=seed,
            threads=self.file.run.threads,
            report=report,
        )
        return float(result.loss)

    def after(self, trial: optuna.trial.FrozenTrial) -> None:
        """Clear away what a trial that has ended leaves behind."""
