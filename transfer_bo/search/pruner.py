"""Stop hopeless proxies from their loss curve, each rung for itself.

Optuna's own pruners compare all trials of a study at the same step and so stop the small ones, whose loss is
higher because they are small. Here a trial is only ever compared with finished trials of its own rung, at the
same progress through the run.

Symbols (losses are minimized; for a maximized metric their signs turn):
    p     progress through the run, in (0, 1]
    v     loss of the trial in question at p
    v_i   loss of finished trial i of the same rung at p
    f_i   final loss of finished trial i
    e     v - min_i v_i, the trial's excess over the best curve at p
"""

from __future__ import annotations

import math
import statistics

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from transfer_bo.attributes import PROGRESS_STEPS, PURPOSE_ATTR, SCALE_ATTR

__all__ = ["RungPruner", "compares_rungs"]

_COMPARING = (
    optuna.pruners.PercentilePruner,  # with MedianPruner
    optuna.pruners.SuccessiveHalvingPruner,
    optuna.pruners.HyperbandPruner,
    optuna.pruners.WilcoxonPruner,
)
"""Optuna's pruners that compare all trials of a study."""


def compares_rungs(pruner: optuna.pruners.BasePruner) -> bool:
    """Whether a pruner of Optuna compares trials of different rungs; PatientPruner does as the one inside."""
    inner = getattr(pruner, "_wrapped_pruner", None)
    return isinstance(pruner, _COMPARING) or (inner is not None and compares_rungs(inner))


class RungPruner(optuna.pruners.BasePruner):
    """Stop a trial when both hold, from progress `min_progress` on, with `min_finished` to compare with.

    1. It is far behind: e > `factor` x the median excess of the finished trials at p.
    2. It cannot catch up: even with the best recovery that a finished trial of this rung made from p on,
       max_i (v_i - f_i), it would end above the median final loss, median_i f_i.

    Rule 2 keeps high learning rates alive, which look bad until the decay and then fall fast; rule 1 keeps
    a trial alive when the rung's curves lie far apart anyway. Both are differences of losses, so adding a
    constant to every loss changes nothing. The best curve has e <= 0 and is never stopped, nor are
    verification and control runs, nor trials without a scale or with a loss that is not finite (divergence is
    the trainer's to call).

    Both thresholds are on the safe side: a stopped trial still teaches the surrogate that its HPs are poor,
    but a good one stopped is a good one lost.

    Args:
        min_progress: share of the run, in (0, 1], before which nothing is stopped.
        min_finished: number of finished trials of the same rung that are needed to compare with.
        factor: how many median excesses behind the best counts as far behind.
    """

    def __init__(self, *, min_progress: float = 0.25, min_finished: int = 4, factor: float = 3.0) -> None:
        self._min_step = min_progress * PROGRESS_STEPS
        self._min_finished = min_finished
        self._factor = factor

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether the trial should stop now; called by `trial.should_prune()`."""
        step, scale = trial.last_step, trial.user_attrs.get(SCALE_ATTR)
        is_search = trial.user_attrs.get(PURPOSE_ATTR, "search") == "search"
        if step is None or step < self._min_step or scale is None or not is_search:
            return False

        peers = [
            peer
            for peer in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            if peer.user_attrs.get(SCALE_ATTR) == scale
            and math.isfinite(peer.intermediate_values.get(step, math.nan))
            and math.isfinite(peer.values[0])  # inf reaches COMPLETE when the objective is not wrapped
        ]
        if len(peers) < self._min_finished or not math.isfinite(trial.intermediate_values[step]):
            return False

        sign = 1.0 if study.direction == StudyDirection.MINIMIZE else -1.0
        v = sign * trial.intermediate_values[step]
        v_i = [sign * peer.intermediate_values[step] for peer in peers]
        f_i = [sign * peer.values[0] for peer in peers]
        best = min(v_i)
        far_behind = v - best > self._factor * statistics.median(other - best for other in v_i)
        best_recovery = max(now - final for now, final in zip(v_i, f_i, strict=True))
        beyond_recovery = v - best_recovery > statistics.median(f_i)
        return far_behind and beyond_recovery
