"""Hugging Face transformers (extra `hf`): an optimizer and a callback for its Trainer.

Under `transfer_bo.objective`, with p at the trial's scale:

    model = build_model(scale)
    p.initialize(model, hps)
    optimizer = hf.create_optimizer(p, model, hps)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(..., max_grad_norm=0.0),
        optimizers=(optimizer, None),
        callbacks=[hf.Callback(p, trial)],
        ...
    )
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import nn
from transformers import TrainerCallback

from transfer_bo.attributes import PROGRESS_STEPS
from transfer_bo.errors import Diverged, ParametrizationError
from transfer_bo.integrations.formats import export
from transfer_bo.integrations.plan import SuggestionLike
from transfer_bo.parametrization import Parametrization

__all__ = ["Callback", "create_optimizer", "training_arguments"]


class _Trial(Protocol):
    """The part of an Optuna trial that the callback needs."""

    def report(self, value: float, step: int) -> None:
        """Store an intermediate value."""

    def should_prune(self) -> bool:
        """Whether to stop."""


def create_optimizer(
    p: Parametrization, model: nn.Module, hps: Mapping[str, float] | None = None
) -> torch.optim.Optimizer:
    """The rule's optimizer with a group per setting, for `Trainer(optimizers=(optimizer, None))`.

    Args:
        p: At the scale that the model was built at.
        model: To be trained; `p.initialize(model, hps)` gives it its initial values.
        hps: In base coordinates.

    Raises:
        ParametrizationError: for a model of another scale, or a rule that needs two optimizers.
        SearchSpaceError: for an HP that the model has no group for.
    """
    optimizers = p.optimizers(model, hps)
    if len(optimizers) > 1:
        raise ParametrizationError(
            f"Rule {p.rule.name!r} trains with {' and '.join(type(o).__name__ for o in optimizers)}, and a "
            "Trainer takes one optimizer; use a rule with one."
        )
    return optimizers[0]


def training_arguments(
    suggestion: SuggestionLike, p: Parametrization, *, context: int | None = None
) -> dict[str, Any]:
    """Keyword arguments of `TrainingArguments` for a suggestion; `export(..., "hf")` adds what they lack.

    Args:
        suggestion: HPs in base coordinates.
        p: Of the model, at any scale.
        context: Tokens per sequence, for a batch that is given in tokens.

    Raises:
        ParametrizationError: if the model cannot be parametrized at the target.
        SearchSpaceError: for an HP that the model has no group for.
    """
    return dict(export(suggestion, p, "hf", context=context).settings)


class Callback(TrainerCallback):
    """Checks the set-up at step 0, clips gradients, reports to a trial, stops what diverges or is pruned.

    Args:
        p: At the scale that the model was built at.
        trial: An Optuna trial that gets each evaluation loss at the progress of the run; None for no reports.
        max_norm: Largest norm of the gradient, as `Parametrization.clip_grad_norm_` counts it.
        metric: Key of the evaluation's metrics that is reported.
    """

    def __init__(
        self,
        p: Parametrization,
        trial: _Trial | None = None,
        *,
        max_norm: float = 1.0,
        metric: str = "eval_loss",
    ) -> None:
        self._p = p
        self._trial = trial
        self._max_norm = max_norm
        self._metric = metric
        self._reported: int | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check the model and the optimizer.

        Raises:
            ParametrizationError: if the Trainer clips by itself, trains in float16, or anything is not set as
                the parametrization says.
        """
        if args.max_grad_norm:
            raise ParametrizationError(
                f"TrainingArguments(max_grad_norm={args.max_grad_norm!r}) clips another norm than the "
                "parametrization's; set it to 0.0, as the callback clips."
            )
        if args.fp16:
            raise ParametrizationError(
                "TrainingArguments(fp16=True) scales gradients before the callback clips them; use bf16=True."
            )
        optimizer = kwargs["optimizer"]
        self._p.check(kwargs["model"], getattr(optimizer, "optimizer", optimizer)).raise_if_wrong()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Clip the gradients."""
        self._p.clip_grad_norm_(kwargs["model"], self._max_norm)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Stop a run whose loss or gradient is not finite; the Trainer logs 0 for a loss that is not.

        Raises:
            Diverged: if one of them is not.
        """
        for key in ("loss", "grad_norm"):
            value = (logs or {}).get(key)
            if value is not None and not math.isfinite(float(value)):
                raise Diverged(f"The {key} is {value} at step {state.global_step}.")

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Report the evaluation loss, and stop if the study's pruner says so.

        Raises:
            Diverged: if the loss is not finite.
            TrialPruned: if the trial is to stop.
        """
        loss = float((metrics or {}).get(self._metric, math.nan))
        if not math.isfinite(loss):
            raise Diverged(f"The {self._metric} is {loss} at step {state.global_step}.")
        step = round(PROGRESS_STEPS * state.global_step / max(1, state.max_steps))
        if self._trial is None or step == self._reported:  # evaluated again at the end
            return
        self._trial.report(loss, step=step)
        self._reported = step
        if self._trial.should_prune():
            from optuna import TrialPruned  # needed with a trial only

            raise TrialPruned(f"Pruned at step {state.global_step} of {state.max_steps}.")
