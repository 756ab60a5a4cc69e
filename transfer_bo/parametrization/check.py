"""Whether a model and its optimizer are set up as a parametrization says: every difference, by name.

Symbols as in `apply`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from transfer_bo.errors import ParametrizationError
from transfer_bo.parametrization.base_model import Draw
from transfer_bo.parametrization.builds import modules_of, parameters_of
from transfer_bo.parametrization.forward_multipliers import forward_values
from transfer_bo.parametrization.hp_values import HPs
from transfer_bo.parametrization.optimizers import OPTIMIZERS
from transfer_bo.parametrization.residual import Multiply, MultiplyInput
from transfer_bo.parametrization.scaled_settings import ScaledSettings, TensorSettings
from transfer_bo.parametrization.sharding import total_norm
from transfer_bo.quantities import counted

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CheckReport", "Difference", "check_set_up"]

RTOL = 1e-6
"""Relative tolerance on the optimizer's options and on multipliers: rounding."""

INIT_RTOL = 1e-2
"""Relative tolerance on initial values: rounding to bfloat16, averaged over few elements."""

SAMPLING_ERRORS = 5.0
"""Standard errors by which initial values may differ from another seed's."""

CLIPPED_RTOL = 2e-5
"""Relative tolerance on a norm that was clipped: torch divides by the norm + 1e-6."""

SHOWN = 10
"""Differences that an error message shows."""


@dataclass(frozen=True)
class Difference:
    """One thing that is not as the parametrization says."""

    tensor: str
    """Name of the tensor, or path of the module that a multiplier is on; "" for the whole model."""
    setting: str
    """group, optimizer, lr, weight_decay, betas, eps, ..., init, forward, clipping."""
    expected: Any
    """What the parametrization says."""
    actual: Any
    """What was found."""

    def __str__(self) -> str:
        where = self.tensor or "the model"
        return f"{where}: {self.setting} is {_text(self.actual)}, expected {_text(self.expected)}"


@dataclass(frozen=True)
class CheckReport(Sequence[Difference]):
    """The differences that a check found; empty if the parametrization is active."""

    differences: tuple[Difference, ...]

    def __getitem__(self, index: Any) -> Any:
        return self.differences[index]

    def __len__(self) -> int:
        return len(self.differences)

    def __iter__(self) -> Iterator[Difference]:
        return iter(self.differences)

    def __str__(self) -> str:
        if not self.differences:
            return "The parametrization is active: groups, settings, initial values and multipliers agree."
        return "\n".join(map(str, self.differences))

    @property
    def is_active(self) -> bool:
        """Whether there is no difference."""
        return not self.differences

    def table(self) -> pd.DataFrame:
        """A row per difference: tensor, setting, expected, actual."""
        import pandas as pd  # slow to import, needed here only

        columns = ["tensor", "setting", "expected", "actual"]
        return pd.DataFrame([vars(difference) for difference in self.differences], columns=columns)

    def raise_if_wrong(self) -> None:
        """Raise an error that names the differences.

        Raises:
            ParametrizationError: if there is any.
        """
        if not self.differences:
            return
        shown = "; ".join(map(str, self.differences[:SHOWN]))
        more = len(self.differences) - SHOWN
        raise ParametrizationError(
            f"The parametrization is not active in this model and optimizer: {shown}"
            f"{f'; and {more} more' if more > 0 else ''}; call p.initialize(model, hps) and give "
            "p.param_groups(model, hps) to the optimizer."
        )


def check_set_up(
    p: ScaledSettings,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    hps: HPs,
    seed: int | None,
) -> CheckReport:
    """Compare a model and its optimizers with the settings of a parametrization.

    Args:
        p: The settings.
        model: Wrapped or not.
        optimizers: All that step it.
        hps: In base coordinates.
        seed: Of the initial values; None if it is not known, so that only their size can be compared.

    Raises:
        SearchSpaceError: for an HP that the model has no group for.
    """
    parameters = parameters_of(model)
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    expected = {name: tensor.shape for name, tensor in p.tensors.items()}
    differing = [name for name in {**expected, **shapes} if expected.get(name) != shapes.get(name)]
    if differing:
        found = [Difference(name, "shape", expected.get(name), shapes.get(name)) for name in differing]
        return CheckReport(tuple(found))

    settings = p.settings(hps)
    parameters = {name: parameter for name, parameter in parameters.items() if name in settings}
    found = [
        *_check_groups(parameters, optimizers),
        *_check_options(parameters, optimizers, settings),
        *_check_multipliers(p, model, hps),
        *_check_clipping(parameters, p.norm_factors(hps)),
    ]
    if not any(optimizer.state for optimizer in optimizers):  # before the first step
        draws, others = p.draws(seed or 0), p.draws((seed or 0) + 1)
        for name, parameter in parameters.items():
            draw, other = (of_seed[p.tensors[name].base_name] for of_seed in (draws, others))
            if draw.count > 1 or draw == other:  # one random number has no size
                found += _check_init(name, parameter, draw, settings[name].init, is_sampled=seed is None)
    return CheckReport(tuple(found))


def _check_groups(
    parameters: Mapping[str, nn.Parameter], optimizers: Sequence[torch.optim.Optimizer]
) -> list[Difference]:
    """Tensors that are not in exactly one group."""
    counts = Counter(id(q) for o in optimizers for group in o.param_groups for q in group["params"])
    found = [
        Difference(name, "group", "in one", f"in {counts[id(q)] or 'none'}")
        for name, q in parameters.items()
        if counts[id(q)] != 1
    ]
    others = len(counts.keys() - {id(q) for q in parameters.values()})
    if others:
        found.append(
            Difference(
                "", "group", "no other tensors", f"with {counted(others, 'tensor')} of no trainable name"
            )
        )
    return found


def _check_options(
    parameters: Mapping[str, nn.Parameter],
    optimizers: Sequence[torch.optim.Optimizer],
    settings: Mapping[str, TensorSettings],
) -> list[Difference]:
    """Options of the groups that differ, and optimizers of another kind."""
    held = {id(q): (o, group) for o in optimizers for group in o.param_groups for q in group["params"]}
    found: list[Difference] = []
    rates: dict[str, tuple[float, float]] = {}
    for name, parameter in parameters.items():
        if id(parameter) not in held:
            continue
        optimizer, group = held[id(parameter)]
        wanted = settings[name]
        if not _is_kind(optimizer, wanted.optimizer):
            found.append(Difference(name, "optimizer", wanted.optimizer, type(optimizer).__name__))
        for option, value in wanted.options.items():
            if option == "lr":  # a schedule keeps the peak learning rate in "initial_lr"
                rates[name] = (value, float(group.get("initial_lr", group["lr"])))
            elif not _is_close(value, group.get(option)):
                found.append(Difference(name, option, value, group.get(option)))

    ratios = {actual / value for value, actual in rates.values() if value}
    by_schedule = len(ratios) > 0 and _is_close(min(ratios), max(ratios)) and not _is_close(min(ratios), 1.0)
    if by_schedule and len(rates) > 1:
        factor = max(ratios)
        found.append(Difference("", "lr", "as given by the HPs", f"{factor:.6g} times that in every tensor"))
    else:
        found += [
            Difference(n, "lr", v, actual) for n, (v, actual) in rates.items() if not _is_close(v, actual)
        ]
    return found


def _is_kind(optimizer: torch.optim.Optimizer, name: str) -> bool:
    """Whether an optimizer may be of a kind; of classes not known here, only options are compared."""
    kinds = {kind: made for kind, made in OPTIMIZERS.items() if isinstance(made, type)}
    if type(optimizer) not in kinds.values():
        return True
    return type(optimizer) is kinds.get(name)


def _check_multipliers(p: ScaledSettings, model: nn.Module, hps: HPs) -> list[Difference]:
    """Hooks that are missing, have another factor, or should not be there; multipliers of the model's own."""
    outputs, inputs = p.hooked_multipliers(hps)
    found: list[Difference] = []
    for path, module in modules_of(model).items():
        for kind, hooks, expected in (
            (Multiply, module._forward_hooks, outputs.get(path, 1.0)),
            (MultiplyInput, module._forward_pre_hooks, inputs.get(path, 1.0)),
        ):
            actual = math.prod(hook.factor for hook in hooks.values() if isinstance(hook, kind))
            if not _is_close(expected, actual):
                found.append(Difference(path, "forward", expected, actual))

    set_values = forward_values(model)
    for name, expected in p.forward_multipliers(hps).items():
        if not _is_close(expected, set_values.get(name)):
            found.append(Difference("", f"forward.{name}", expected, set_values.get(name)))
    return found


def _check_init(
    name: str, parameter: nn.Parameter, draw: Draw, factor: float, is_sampled: bool
) -> list[Difference]:
    """A root mean square that differs from the base's draw times the factor by more than its error."""
    actual = float(total_norm([parameter.detach().float()])) / math.sqrt(parameter.numel())
    expected = draw.rms * factor
    error = 0.0
    if is_sampled and not draw.is_constant:
        # Of a mean square of n values, relative variance (kurtosis - 1) / n; of its root, a quarter of that.
        error = SAMPLING_ERRORS * math.sqrt(max(draw.kurtosis - 1, 0.0) / (4 * draw.count)) * math.sqrt(2)
    if abs(actual - expected) <= (INIT_RTOL + error) * expected:
        return []
    return [Difference(name, "init", expected, actual)]


def _check_clipping(parameters: Mapping[str, nn.Parameter], factors: Mapping[str, float]) -> list[Difference]:
    """Gradients that somebody else has clipped, where that is not what `clip_grad_norm_` does.

    A clipped norm is exactly the limit, and limits are numbers such as 1, .5 or .1; a norm that was not
    clipped has no reason to be one.
    """
    gradients = {name: q.grad for name, q in parameters.items() if q.grad is not None}
    if all(factors.get(name, 1.0) == 1.0 for name in gradients):
        return []  # both norms are the same
    norm = float(total_norm(list(gradients.values())))
    ours = float(total_norm([g * factors.get(name, 1.0) for name, g in gradients.items()]))
    if not _is_limit(norm) or _is_limit(ours):
        return []
    return [Difference("", "clipping", "p.clip_grad_norm_(model, max_norm)", f"to a norm of {norm:.6g}")]


def _is_limit(norm: float) -> bool:
    """Whether a norm is a number of one digit, as people give limits."""
    return norm > 0 and math.isclose(norm, float(f"{norm:.0e}"), rel_tol=CLIPPED_RTOL)


def _is_close(expected: Any, actual: Any) -> bool:
    if isinstance(expected, tuple | list):
        return isinstance(actual, tuple | list) and all(
            _is_close(one, other) for one, other in zip(expected, actual, strict=False)
        )
    return actual is not None and math.isclose(float(expected), float(actual), rel_tol=RTOL, abs_tol=1e-300)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, tuple | list) and all(isinstance(x, float) for x in value):
        return f"({', '.join(f'{x:.6g}' for x in value)})"
    return str(value)
