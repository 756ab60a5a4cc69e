"""What each tensor of a model gets at the target, in absolute numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from transfer_bo.quantities import counted
from transfer_bo.report import page
from transfer_bo.report.state import State

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from transfer_bo.parametrization import Parametrization

__all__ = ["tensor_settings", "tensors"]

RULE = ("init_std", "lr", "eps", "weight_decay", "one_minus_beta", "forward")
"""The columns of `Parametrization.table` that are factors relative to the base."""

ABOUT = (
    "What the optimizer and the initialisation get for each tensor at the target, under the HPs that were "
    "verified there or else are suggested; “rule” is the factor of the parametrization relative to the base."
)


def tensors(state: State, tensor_table: Callable[[Mapping[str, Any]], pd.DataFrame] | None) -> list[str]:
    """The section: a row per tensor, under the HPs that are set at the target; empty where there are none."""
    if tensor_table is None or state.chosen is None:
        return []
    table = tensor_table(state.chosen)
    rows = table.astype(object).itertuples(index=False)
    return [
        page.paragraph(ABOUT, "quiet"),
        page.details(f"All {counted(len(table), 'tensor')}", page.table(list(table.columns), rows)),
    ]


def tensor_settings(
    parametrization: Parametrization, model: nn.Module, hps: Mapping[str, Any]
) -> pd.DataFrame:
    """A row per tensor: its settings under some HPs, and the factors of the rule that they come from.

    Args:
        parametrization: The parametrization, from the base to the model's scale.
        model: A model built at that scale; it is initialised here.
        hps: HPs in base coordinates.

    Returns:
        Columns name, role, module_type, shape; as set: init_std (of the drawn values), optimizer (if not
        all have AdamW), lr, beta1 (or momentum), beta2, eps, weight_decay, with every multiplier that is
        folded into the tensor, empty where the optimizer has none; "rule: ..." relative to the base; applied.
    """
    from transfer_bo.parametrization.builds import parameters_of

    parametrization.initialize(model, dict(hps))
    parameters = parameters_of(model)
    settings = parametrization.settings(dict(hps))

    rule = parametrization.table()
    table = rule[["name", "role", "module_type", "shape"]].copy()
    spread = [float(parameters[name].detach().std(correction=0)) for name in rule["name"]]
    table["init_std"] = spread

    options = [settings[name].options for name in rule["name"]]
    betas = [of_one.get("betas", (of_one.get("momentum"), None)) for of_one in options]
    if any(settings[name].optimizer != "adamw" for name in rule["name"]):
        table["optimizer"] = [settings[name].optimizer for name in rule["name"]]
    table["lr"] = [of_one["lr"] for of_one in options]
    table["beta1"] = [beta1 for beta1, _ in betas]
    table["beta2"] = [beta2 for _, beta2 in betas]
    table["eps"] = [of_one.get("eps") for of_one in options]
    table["weight_decay"] = [of_one["weight_decay"] for of_one in options]

    for column in RULE:
        table[f"rule: {column}"] = rule[column]
    table["applied"] = rule["applied"]
    return table
