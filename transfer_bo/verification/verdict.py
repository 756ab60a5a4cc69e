"""What the runs of a verification say about the prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import optuna

from transfer_bo.attributes import SPEED_ATTR
from transfer_bo.display.text import speed_text
from transfer_bo.errors import StudyError
from transfer_bo.quantities import loss_text
from transfer_bo.scale import Scale
from transfer_bo.verification.early_verdict import EarlyVerdict, verdict_changes
from transfer_bo.verification.jobs import LEVEL, Job, replicas
from transfer_bo.verification.monitor import stored_curve
from transfer_bo.verification.paired_test import Comparison, compare_paired

__all__ = ["Verification", "judge"]


@dataclass(frozen=True)
class Verification:
    """Measured losses beside the predicted one; a loss is None if the run diverged or failed."""

    target: Scale
    """Where the runs were made."""

    measured: float | None
    """Loss of the suggestion."""

    predicted_mean: float
    """Loss that was predicted for it."""

    interval: tuple[float, float]
    """Lower and upper end of the predicted interval."""

    control: dict[str, float | None]
    """Measured loss of each control run, by name."""

    level: float = LEVEL
    """Probability with which the interval was to hold the measured loss."""

    maximize: bool = False
    """Whether larger is better."""

    comparisons: tuple[Comparison, ...] = ()
    """Suggestion and each control over several seeds, if they were run again."""

    early: tuple[EarlyVerdict, ...] = ()
    """Verdicts that the suggestion's run got while it ran, each at its first report; none without a curve."""

    speed: str = ""
    """How fast the suggestion's run trained, in words; empty if it did not report it."""

    next_params: dict[str, Any] | None = None
    """The next safest setting, if the suggestion's run diverged."""

    @property
    def inside(self) -> bool:
        """Whether the measured loss lies in the predicted interval."""
        return self.measured is not None and self.interval[0] <= self.measured <= self.interval[1]

    @property
    def text(self) -> str:
        """The verdict in words."""
        low, high = self.interval
        interval = f"{self.level:.0%} interval [{loss_text(low)}, {loss_text(high)}]"
        predicted = f"predicted {loss_text(self.predicted_mean)}, {interval}"
        axes = ", ".join(f"{axis} {value:g}" for axis, value in self.target.items())
        if self.measured is None:
            what = f"At {axes} the suggestion did not give a loss (the run diverged or failed); {predicted}."
            return " ".join([what, *self._early_sentences()])

        sentences = [f"At {axes} the suggestion gave {loss_text(self.measured)}; {predicted}."]
        if self.inside:
            sentences.append("The measured value lies inside the interval.")
        else:
            side, edge = ("above", high) if self.measured > high else ("below", low)
            distance = abs(self.measured - edge)
            sentences.append(
                f"The measured value lies outside the interval, {loss_text(distance)} {side} it."
            )

        sentences += self._early_sentences()
        sentences += [self._against_control(name, self.measured) for name in self.control]
        return " ".join([*sentences, *(comparison.text for comparison in self.comparisons)])

    def _early_sentences(self) -> list[str]:
        sentences = []
        if self.early:
            steps = [f"{verdict.track} from {verdict.progress:.0%}" for verdict in self.early]
            sentences.append(f"While it ran it was {', then '.join(steps)} of the run on.")
        if self.speed:
            sentences.append(f"It trained at {self.speed}.")
        if self.next_params is not None:
            setting = ", ".join(f"{name} {_short(value)}" for name, value in self.next_params.items())
            sentences.append(f"The next safest setting is {setting}; verify again to run it.")
        return sentences

    def _against_control(self, name: str, measured: float) -> str:
        loss = self.control[name]
        if loss is None:
            return f"The control run with the {name} gave no loss (it diverged or failed)."
        gain = (measured - loss if self.maximize else loss - measured) / abs(loss)
        compared = f"{abs(gain):.2%} {'better' if gain > 0 else 'worse'} than" if gain else "as good as"
        return f"It is {compared} the control run with the {name}, {loss_text(loss)}."


def judge(
    study: optuna.Study,
    jobs: Sequence[Job],
    replicate: int = 0,
    next_params: dict[str, Any] | None = None,
) -> Verification:
    """The verdict on jobs that have been run, each once and `replicate` times more.

    Args:
        study: The study that holds the runs.
        jobs: The suggestion's job first, then the controls', as `plan` makes them.
        replicate: How often each was repeated.
        next_params: The next safest setting, if the suggestion's run diverged.

    Raises:
        StudyError: If one of them has not run yet, or stopped with an error that says nothing about its HPs.
    """
    # The first runs were made after the search and nothing was chosen by them, so they are a pair, too.
    losses = [[_loss(study, each) for each in (job, *replicas([job], replicate))] for job in jobs]
    prediction = jobs[0].prediction
    assert prediction is not None
    low, high = prediction["interval"]
    maximize = study.direction == optuna.study.StudyDirection.MAXIMIZE

    comparisons = [
        compare_paired(jobs[0].name, job.name, list(zip(losses[0], of_control, strict=True)), maximize)
        for job, of_control in zip(jobs[1:], losses[1:], strict=True)
        if replicate
    ]
    return Verification(
        target=jobs[0].scale,
        measured=losses[0][0],
        predicted_mean=prediction["loss"],
        interval=(low, high),
        control={job.name: of_job[0] for job, of_job in zip(jobs[1:], losses[1:], strict=True)},
        level=prediction["level"],
        maximize=maximize,
        comparisons=tuple(comparisons),
        early=_early(study, jobs[0]),
        speed=_speed(study, jobs[0]),
        next_params=next_params,
    )


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _early(study: optuna.Study, job: Job) -> tuple[EarlyVerdict, ...]:
    run, predicted = job.find(study), stored_curve(job.prediction)
    return () if run is None or predicted is None else verdict_changes(predicted, run.curve)


def _speed(study: optuna.Study, job: Job) -> str:
    run = job.find(study)
    if run is None:
        return ""
    return speed_text(study.get_trials(deepcopy=False)[run.number].user_attrs.get(SPEED_ATTR))


def _loss(study: optuna.Study, job: Job) -> float | None:
    run = job.find(study)
    if run is None:
        which = f"Replica {job.replica} of the" if job.replica else "The"
        raise StudyError(
            f"{which} {job.name} has not been run at {job.scale} yet, or stopped with an error; "
            "run the verification again."
        )
    return run.loss
