"""The coordinate check: whether the output of each layer changes by the same amount at every width and depth.

Under a rule that transfers, the change of every layer's output over the first steps of training does not
depend on width and depth (arXiv:2203.03466, appendix D.1; for depth 2505.01618). Models of several sizes are
trained for a few steps on one batch, and for each kind of layer the exponent of

    rms(change) ∝ size^exponent

is fitted, for the total change of its output and for its own part in it (`activation_changes.py`). Where a
rule is wrong for a kind of layer, the exponent differs from 0.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import stdtrit
from torch import nn

from transfer_bo.errors import ParametrizationError
from transfer_bo.parametrization.activation_changes import OWN, STACK, Loss, measure_changes
from transfer_bo.parametrization.apply import parametrize
from transfer_bo.parametrization.builds import BuildModel, build_real
from transfer_bo.parametrization.example_inputs import call_with_example_inputs
from transfer_bo.parametrization.hp_values import HPs
from transfer_bo.parametrization.rules import Rule
from transfer_bo.parametrization.tables import find_rule
from transfer_bo.quantities import counted
from transfer_bo.scale import Scale
from transfer_bo.space import DEFAULT_RULE

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["CoordCheck", "Growth", "coordinate_check", "random_classes"]

TOLERANCE = 0.25
"""Largest exponent that passes. Wrong tables give about 1/2, finite sizes of small models up to .2."""
INCOHERENT = 0.5
"""Additional tolerance for shrinking stacks. Changes of L blocks sum to L times one of them if they agree, to
√L times if they are independent; small models in short runs lie in between."""
FACTORS = (1, 2, 4, 8)
"""Sizes that are trained, in units of the base's."""
STEPS = 4
"""Optimizer steps."""
TINY = 1e-300
"""Replaces a change of 0, which has no logarithm."""


@dataclass(frozen=True)
class Growth:
    """How the change of one kind of layer's output depends on one axis."""

    axis: str
    """width or depth."""
    module: str
    """Module type, or the path of a stack."""
    measure: str
    """"total", "own" or "stack": see `activation_changes.py`."""
    exponent: float
    """Mean over seeds."""
    low: float
    """Lower end of its 95% interval, from the spread over seeds."""
    high: float
    """Upper end."""
    verdict: str
    """"grows" or "vanishes" if the whole interval is outside the tolerance, else "ok"."""


@dataclass(frozen=True)
class CoordCheck:
    """The outcome: a `Growth` per axis, kind of layer and measure."""

    rule: str
    """Name of the rule."""
    growths: tuple[Growth, ...]
    """In the order of axes and layers."""
    sizes: dict[tuple[str, str, str], dict[float, list[float]]]
    """(axis, module, measure) -> size -> rms change for each seed."""

    @property
    def passed(self) -> bool:
        """Whether every kind of layer is ok."""
        return all(growth.verdict == "ok" for growth in self.growths)

    @property
    def failures(self) -> tuple[Growth, ...]:
        """Those that are not ok, the worst first."""
        return tuple(sorted((g for g in self.growths if g.verdict != "ok"), key=lambda g: -abs(g.exponent)))

    def table(self) -> pd.DataFrame:
        """A row per axis, kind of layer and measure: axis, module, measure, exponent, low, high, verdict."""
        import pandas as pd  # slow to import, needed here only

        return pd.DataFrame([vars(growth) for growth in self.growths])

    def plot(self) -> Figure:
        """Change against size, a column per axis, own changes in the lower row; failures are drawn bold."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        axes = list(dict.fromkeys(growth.axis for growth in self.growths))
        figure = Figure(figsize=(6.5 * len(axes), 9), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(2, len(axes), squeeze=False)

        for growth in self.growths:
            panel = panels[int(growth.measure == OWN)][axes.index(growth.axis)]
            points = self.sizes[growth.axis, growth.module, growth.measure]
            values = [math.exp(sum(math.log(max(x, TINY)) for x in p) / len(p)) for p in points.values()]
            failed = growth.verdict != "ok"
            label = f"{growth.module} {growth.exponent:+.2f}{f' {growth.verdict}' if failed else ''}"
            panel.plot(
                list(points), values, marker="o", markersize=3, linewidth=2.5 if failed else 1, label=label
            )

        for (row, column), panel in np.ndenumerate(panels):
            panel.set_xscale("log", base=2)
            panel.set_yscale("log", base=2)
            panel.set_xlabel(axes[column])
            panel.set_ylabel(("total", "own")[row] + " change of the layer's output (rms)")
            panel.legend(fontsize=7, ncols=2, title="layer, exponent", title_fontsize=7)
        figure.suptitle(f"Coordinate check, rule {self.rule}: {'passed' if self.passed else 'failed'}")
        return figure


def coordinate_check(
    build_model: BuildModel,
    base: Scale,
    rule: str | Rule = DEFAULT_RULE,
    alpha: float = 1.0,
    *,
    optimizer: str | None = None,
    hps: HPs | None = None,
    axes: Sequence[str] = ("width", "depth"),
    factors: Sequence[float] = FACTORS,
    steps: int = STEPS,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    inputs: tuple[torch.Tensor, ...] | None = None,
    loss: Loss | None = None,
    roles: Mapping[str, str] | None = None,
    tolerance: float = TOLERANCE,
) -> CoordCheck:
    """Train models of several widths and depths for a few steps and see which layers change alike.

    Args:
        build_model: As for `parametrize`.
        base: The smallest scale; its batch and tokens are not used. Use four blocks or more to check depth:
            with a single one the last block has none before it.
        rule: Name of a table in `tables.RULES`, or a `Rule`.
        alpha: α of the residual multiplier m_L^-α.
        optimizer: The optimizer to use the rule's table of; the one that the rule names if not given.
        hps: In base coordinates. To check ε, set it to the size of the gradients' elements.
        axes: Which of "width" and "depth" to check, one at a time, the other as at the base.
        factors: Sizes, in units of the base's.
        steps: Optimizer steps.
        seeds: Of the initial weights and the targets.
        inputs: What the model is called with; guessed if not given.
        loss: `loss(model, inputs)`; cross-entropy of the outputs against random classes if not given.
        roles: Role by name pattern, as for `parametrize`.
        tolerance: Largest exponent, in absolute value, that passes.

    Raises:
        ParametrizationError: if the model cannot be parametrized or called, an axis is missing, or the rule
            has no table for the optimizer.
    """
    rule = find_rule(rule, optimizer)
    if len(factors) < 2 or len(seeds) < 2:
        raise ParametrizationError(
            f"A coordinate check with {counted(len(factors), 'size')} and {counted(len(seeds), 'seed')} "
            "shows no growth; "
            "give two or more of each."
        )
    unknown = [axis for axis in axes if axis not in ("width", "depth") or axis not in base]
    if unknown or not axes:
        raise ParametrizationError(
            f"Axes {tuple(axes)} can't be checked at {base}; use its width, depth or both."
        )
    base = Scale({axis: value for axis, value in base.items() if axis not in ("batch", "tokens")})
    call = call_with_example_inputs(build_real(build_model, base, seed=0), inputs)
    if call.arguments is None:
        raise ParametrizationError(f"The model cannot be called ({call.reason}); give inputs=(tensor, ...).")

    changes: dict[tuple[str, str, str], dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for axis in axes:
        for factor in factors:
            scale = base.replace(**{axis: base[axis] * factor})
            p = parametrize(build_model, base, scale, rule, alpha, roles=roles, inputs=call.arguments)
            for seed in seeds:
                found = measure_changes(p, hps, seed, call.arguments, steps, loss or random_classes(seed))
                for (module, measure), change in found.items():
                    changes[axis, module, measure][scale[axis]].append(change)

    sizes = {key: dict(points) for key, points in changes.items()}
    growths = [_growth(*key, points, tolerance) for key, points in sizes.items()]
    return CoordCheck(rule.name, tuple(growths), sizes)


def random_classes(seed: int) -> Loss:
    """Cross-entropy of a model's outputs (or their `logits`) against classes drawn at random, by a seed."""

    def cross_entropy(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        out = model(*inputs)
        out = getattr(out, "logits", out)
        if not isinstance(out, torch.Tensor) or out.dim() < 2:
            raise ParametrizationError(
                f"The model returns {type(out).__name__}, not logits; give loss=callable(model, inputs)."
            )
        targets = torch.Generator().manual_seed(seed)
        classes = torch.randint(out.shape[-1], out.shape[:-1], generator=targets)
        return F.cross_entropy(out.flatten(0, -2), classes.flatten())

    return cross_entropy


def _growth(
    axis: str, module: str, measure: str, points: Mapping[float, Sequence[float]], tolerance: float
) -> Growth:
    """Slope of log change over log size, for each seed; their mean and its t interval."""
    sizes = [math.log2(size) for size in points]
    centre = sum(sizes) / len(sizes)
    weights = [s - centre for s in sizes]
    norm = sum(w * w for w in weights)
    seeds = len(next(iter(points.values())))
    slopes = [
        sum(w * math.log2(max(change[i], TINY)) for w, change in zip(weights, points.values(), strict=True))
        / norm
        for i in range(seeds)
    ]

    mean = sum(slopes) / seeds
    spread = math.sqrt(sum((s - mean) ** 2 for s in slopes) / (seeds - 1) / seeds)
    half = float(stdtrit(seeds - 1, 0.975)) * spread
    low, high = mean - half, mean + half

    has_diverged = not math.isfinite(mean)
    allowed = tolerance + (INCOHERENT if measure == STACK and axis == "depth" else 0)
    verdict = "grows" if low > tolerance or has_diverged else "vanishes" if high < -allowed else "ok"
    return Growth(axis, module, measure, mean, low, high, verdict)
