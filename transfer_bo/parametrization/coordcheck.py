"""The coordinate check: does what a layer gives change equally much in a wider or deeper model?

A rule that transfers keeps the change of every layer's output over the first steps of training of one size,
whatever the width and the depth (2203.03466, appendix D.1; over depth 2505.01618). Models of several sizes
are trained for a few steps on one batch, and for each kind of layer the growth exponent is fitted:

    rms(output after the steps - output before) ∝ size^exponent

A rule that is wrong for a kind of layer shows an exponent away from 0.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn

from transfer_bo.errors import TransferError
from transfer_bo.parametrization.apply import Parametrization, parametrize
from transfer_bo.parametrization.builds import BuildModel, build_real, modules_of
from transfer_bo.parametrization.inputs import run_somehow
from transfer_bo.parametrization.rules import Role, Rule
from transfer_bo.parametrization.settings import HPs
from transfer_bo.scale import Scale

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["CoordCheck", "Growth", "coordinate_check"]

TOLERANCE = 0.25
"""Exponents up to here pass. Wrong tables are off by 1/2 or so, small models by up to .2 of their own."""
FACTORS = (1, 2, 4, 8)
STEPS = 4
Loss = Callable[[nn.Module, tuple[torch.Tensor, ...]], torch.Tensor]


@dataclass(frozen=True)
class Growth:
    """How the change of one kind of layer's output grows along one axis."""

    axis: str
    """width or depth."""
    module: str
    """Module type, or the path of a stack for what its blocks add up to."""
    exponent: float
    low: float
    high: float
    """95% interval of the exponent, from its spread over seeds."""
    verdict: str
    """"ok", "grows" or "vanishes": the whole interval lies beyond the tolerance."""


@dataclass(frozen=True)
class CoordCheck:
    """The outcome: a `Growth` per axis and kind of layer."""

    rule: str
    growths: tuple[Growth, ...]
    sizes: dict[tuple[str, str], dict[float, list[float]]]
    """(axis, module) -> size -> rms change for each seed."""

    @property
    def passed(self) -> bool:
        """Whether every kind of layer is ok."""
        return all(growth.verdict == "ok" for growth in self.growths)

    @property
    def failures(self) -> tuple[Growth, ...]:
        """Those that are not ok, the worst first."""
        return tuple(sorted((g for g in self.growths if g.verdict != "ok"), key=lambda g: -abs(g.exponent)))

    def table(self) -> pd.DataFrame:
        """A row per axis and kind of layer: axis, module, exponent, low, high, verdict."""
        import pandas as pd  # slow to import, needed here only

        return pd.DataFrame([vars(growth) for growth in self.growths])

    def plot(self) -> Figure:
        """Change against size, a panel per axis, a line per kind of layer; those that fail are drawn bold."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        axes = list(dict.fromkeys(growth.axis for growth in self.growths))
        figure = Figure(figsize=(6.5 * len(axes), 4.5), layout="constrained")
        FigureCanvasAgg(figure)
        for panel, axis in zip(figure.subplots(1, len(axes), squeeze=False)[0], axes, strict=True):
            for growth in (g for g in self.growths if g.axis == axis):
                points = self.sizes[axis, growth.module]
                values = [math.exp(sum(map(math.log, p)) / len(p)) for p in points.values()]
                failed = growth.verdict != "ok"
                panel.plot(
                    list(points), values, marker="o", markersize=3, linewidth=2.5 if failed else 1,
                    label=f"{growth.module} {growth.exponent:+.2f}{f' {growth.verdict}' if failed else ''}",
                )  # fmt: skip
            panel.set_xscale("log", base=2)
            panel.set_yscale("log", base=2)
            panel.set_xlabel(axis)
            panel.set_ylabel("change of the layer's output (rms)")
            panel.legend(fontsize=7, ncols=2, title="layer, exponent", title_fontsize=7)
        figure.suptitle(f"Coordinate check, rule {self.rule}: {'passed' if self.passed else 'failed'}")
        return figure


def coordinate_check(
    build_model: BuildModel,
    base: Scale,
    rule: str | Rule = "complete_d_p",
    alpha: float = 1.0,
    *,
    hps: HPs | None = None,
    axes: Sequence[str] = ("width", "depth"),
    factors: Sequence[float] = FACTORS,
    steps: int = STEPS,
    seeds: Sequence[int] = (0, 1, 2),
    inputs: tuple[torch.Tensor, ...] | None = None,
    loss: Loss | None = None,
    roles: Mapping[str, str] | None = None,
    tolerance: float = TOLERANCE,
) -> CoordCheck:
    """Train models of several widths and depths for a few steps and see which layers change alike.

    Args:
        build_model: As for `parametrize`.
        base: The smallest scale; batch and tokens do not matter here. Four blocks or more tell most about
            depth: in a single one the last block has none before it.
        rule: As for `parametrize`.
        alpha: As for `parametrize`.
        hps: In base coordinates. Where ε is to be checked, it must be as large as the gradients' elements.
        axes: Which of "width" and "depth" to check, one at a time, the other as at the base.
        factors: Sizes, in units of the base's.
        steps: Optimizer steps.
        seeds: Of the initial weights and the targets.
        inputs: What the model is called with; guessed if it is not given.
        loss: `loss(model, inputs)`; cross-entropy of the outputs against random classes if it is not given.
        roles: As for `parametrize`.
        tolerance: How far from 0 an exponent may be.

    Raises:
        TransferError: if the model does not fit `parametrize`, cannot be called, or an axis is missing.
    """
    if len(factors) < 2 or len(seeds) < 2:
        raise TransferError(
            f"A coordinate check with {len(factors)} sizes and {len(seeds)} seeds shows no growth; "
            "give two or more of each."
        )
    unknown = [axis for axis in axes if axis not in ("width", "depth") or axis not in base]
    if unknown or not axes:
        raise TransferError(f"Axes {tuple(axes)} can't be checked at {base}; use its width, depth or both.")
    base = Scale({axis: value for axis, value in base.items() if axis not in ("batch", "tokens")})
    run = run_somehow(build_real(build_model, base, seed=0), inputs)
    if run.arguments is None:
        raise TransferError(f"The model can't be called ({run.reason}); give inputs=(tensor, ...).")
    changes: dict[tuple[str, str], dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for axis in axes:
        for factor in factors:
            scale = base.replace(**{axis: base[axis] * factor})
            p = parametrize(build_model, base, scale, rule, alpha, roles=roles, inputs=run.arguments)
            for seed in seeds:
                for module, change in _changes(
                    p, hps, seed, run.arguments, steps, loss or _loss(seed)
                ).items():
                    changes[axis, module][scale[axis]].append(change)
    sizes = {key: dict(points) for key, points in changes.items()}
    growths = [_growth(axis, module, points, tolerance) for (axis, module), points in sizes.items()]
    name = rule if isinstance(rule, str) else rule.name
    return CoordCheck(name, tuple(growths), sizes)


def _loss(seed: int) -> Loss:
    def cross_entropy(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        out = model(*inputs)
        out = getattr(out, "logits", out)
        if not isinstance(out, torch.Tensor) or out.dim() < 2:
            raise TransferError(
                f"The model returns {type(out).__name__}, not logits; give loss=callable(model, inputs)."
            )
        targets = torch.Generator().manual_seed(seed)
        classes = torch.randint(out.shape[-1], out.shape[:-1], generator=targets)
        return F.cross_entropy(out.flatten(0, -2), classes.flatten())

    return cross_entropy


def _changes(
    p: Parametrization,
    hps: HPs | None,
    seed: int,
    inputs: tuple[torch.Tensor, ...],
    steps: int,
    loss: Loss,
) -> dict[str, float]:
    """Module type -> rms change of the outputs of its layers over a few steps."""
    model = build_real(p.build_model, p.target, seed)
    p.initialize(model, hps, seed)
    model.eval()  # dropout is no change
    readers = _readers(p, model)
    start = {path: copy.deepcopy(reader) for path, reader in readers.items()}
    before = _outputs(p, model, inputs)
    optimizers = p.optimizers(model, hps)
    for _ in range(steps):
        model.zero_grad()
        loss(model, inputs).backward()  # type: ignore[no-untyped-call]
        for optimizer in optimizers:
            optimizer.step()
    after = _outputs(p, model, inputs)
    changes = {}
    for module, tensors in before.items():
        squares = [
            (now - then).double().square().mean() for then, now in zip(tensors, after[module], strict=True)
        ]
        changes[module] = float(torch.stack(squares).mean().sqrt())
    return {**changes, **_readout_changes(p, model, inputs, readers, start)}


def _readers(p: Parametrization, model: nn.Module) -> dict[str, nn.Module]:
    """The layers that map to the outputs, by path."""
    modules = modules_of(model)
    paths = [
        t.reader or t.name.rpartition(".")[0]
        for t in p.tensors.values()
        if t.role in (Role.UNEMBEDDING, Role.TIED_EMBEDDING)
    ]
    return {path: modules[path] for path in paths if path}


@torch.no_grad()
def _readout_changes(
    p: Parametrization,
    model: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    readers: Mapping[str, nn.Module],
    start: Mapping[str, nn.Module],
) -> dict[str, float]:
    """Rms of what a readout's own change does to its output, by module type.

    What its initial values make of changed inputs vanishes like width^-1/2 under every muP-like rule, as its
    initial values are smaller than its updates; it would hide whether those have the right size.
    """
    types = {t.reader or t.name.rpartition(".")[0]: t.module_type for t in p.tensors.values()}
    changes: dict[str, float] = {}

    def compare(path: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            # The input has passed the layer's own hooks already: only the layer itself is called.
            change = _tensor(output) - start[path].forward(*args)
            changes[types[path]] = float(change.double().square().mean().sqrt())

        return hook

    handles = [reader.register_forward_hook(compare(path)) for path, reader in readers.items()]
    try:
        model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return changes


@torch.no_grad()
def _outputs(
    p: Parametrization, model: nn.Module, inputs: tuple[torch.Tensor, ...]
) -> dict[str, list[torch.Tensor]]:
    """What is compared: by module type, and by the stack.

    Of layers that hold tensors the output, in the last block where they are in blocks, and without a folded
    branch multiplier; of a stack what all its blocks add up to, which an embedding that learns does not hide.
    """
    kinds: dict[str, str] = {}
    last = {path.rpartition(".")[0]: path for path in (t.block for t in p.tensors.values()) if path}
    first: dict[str, str] = {}
    for tensor in p.tensors.values():
        if tensor.block is not None:
            first.setdefault(tensor.block.rpartition(".")[0], tensor.block)
        if tensor.block is None or tensor.block in last.values():
            kinds[tensor.name.rpartition(".")[0]] = tensor.module_type
    folded = {name.rpartition(".")[0]: theta for name, theta in p.folded.items()}
    found: dict[str, list[torch.Tensor]] = defaultdict(list)
    entering: dict[str, torch.Tensor] = {}
    handles = []

    def keep(kind: str, theta: float) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if (out := _tensor(output)) is not None:
                found[kind].append(out / theta)

        return hook

    def enter(stack: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            if (x := _tensor((*args, *kwargs.values()))) is not None:
                entering[stack] = x.clone()

        return hook

    def leave(stack: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            out = _tensor(output)
            if out is not None and stack in entering and out.shape == entering[stack].shape:
                found[stack or "blocks"].append(out - entering[stack])

        return hook

    for path, module in modules_of(model).items():
        if path in kinds:
            handles.append(module.register_forward_hook(keep(kinds[path], folded.get(path, 1.0))))
        for stack in last:
            if path == first[stack]:
                handles.append(module.register_forward_pre_hook(enter(stack), with_kwargs=True))
            if path == last[stack]:
                handles.append(module.register_forward_hook(leave(stack)))
    try:
        model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return dict(found)


def _tensor(output: Any) -> torch.Tensor | None:
    """The first of several outputs; None if it is no tensor."""
    first = output[0] if isinstance(output, tuple) and output else output
    return first.detach() if isinstance(first, torch.Tensor) else None


def _growth(axis: str, module: str, points: Mapping[float, Sequence[float]], tolerance: float) -> Growth:
    """Slope of log change over log size, for each seed; their mean and its t interval."""
    sizes = [math.log2(size) for size in points]
    centre = sum(sizes) / len(sizes)
    weights = [s - centre for s in sizes]
    norm = sum(w * w for w in weights)
    seeds = len(next(iter(points.values())))
    slopes = [
        sum(w * math.log2(max(change[i], 1e-300)) for w, change in zip(weights, points.values(), strict=True))
        / norm
        for i in range(seeds)
    ]
    mean = sum(slopes) / seeds
    spread = math.sqrt(sum((s - mean) ** 2 for s in slopes) / (seeds - 1) / seeds)
    half = float(stats.t.ppf(0.975, seeds - 1)) * spread
    low, high = mean - half, mean + half
    bad = not math.isfinite(mean)
    verdict = "grows" if low > tolerance or bad else "vanishes" if high < -tolerance else "ok"
    return Growth(axis, module, mean, low, high, verdict)
