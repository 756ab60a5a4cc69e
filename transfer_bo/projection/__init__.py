"""From records to a suggestion: the optimum at the target, with an error bar.

- `projection`: a fitted study that answers questions about any scale (`Projection`).
- `suggestion`: the answer at one scale (`Suggestion`, `PredictedLoss`, `Baseline`).
- `stability`: the chance to diverge there, and where along each HP it becomes one half (`StabilityEdge`).
- `caveats`: what a reader of a suggestion should know, a sentence each.
- `study`: the two calls for an Optuna study, `fit_study` and `suggest`.

There is one way from records to an answer: a surrogate is fitted to runs, a `Projection` is opened on it, and
`Projection.suggest` returns the `Suggestion`.
"""

from transfer_bo.projection.projection import Projection
from transfer_bo.projection.stability import StabilityEdge
from transfer_bo.projection.study import fit_study, suggest
from transfer_bo.projection.suggestion import Baseline, PredictedLoss, Suggestion

__all__ = ["Baseline", "PredictedLoss", "Projection", "StabilityEdge", "Suggestion", "fit_study", "suggest"]
