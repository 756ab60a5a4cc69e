"""A suggestion in base coordinates as what each tensor of a model gets at the target.

The model is built without memory (meta device), so a target of any size will do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transfer_bo.errors import ParametrizationError, ScaleError
from transfer_bo.notes import Note
from transfer_bo.scale import Scale
from transfer_bo.space import DEFAULT_RULE, KINDS

if TYPE_CHECKING:
    from torch import nn

__all__ = ["ModelSpec", "hps_of_tensors"]

_ALIASES = {"learning_rate": "lr", "wd": "weight_decay", "epsilon": "eps"}
_BETAS = {"beta1": "one_minus_beta1", "beta2": "one_minus_beta2"}


@dataclass(frozen=True)
class ModelSpec:
    """What turns base HPs into settings of tensors.

    Attributes:
        build_model: `build_model(scale)` gives the model.
        base: the scale that base HPs refer to; axes that the runs do not have stay as they are here.
        rule: name of the parametrization.
        alpha: of the residual multiplier m_L^-α.
    """

    build_model: Callable[[Scale], nn.Module]
    base: Scale
    rule: str = DEFAULT_RULE
    alpha: float = 1.0

    def check(self, coordinates: str, target: Mapping[str, float]) -> None:
        """Check, before the fit takes its time, that a suggestion for a target can be turned into settings.

        Args:
            coordinates: of the HPs, "raw" or "base".
            target: axis -> value.

        Raises:
            ParametrizationError: for raw coordinates.
            ScaleError: for an axis that the base lacks.
        """
        if coordinates != "base":
            raise ParametrizationError(
                "The HPs are in raw coordinates, which an optimizer takes as they are; "
                "set coordinates = 'base', or leave the model out."
            )
        for axis in target:
            if axis not in self.base:
                raise ScaleError(
                    f"The base {self.base} has no {axis}, which the target has; give each axis of the target."
                )

    def tensors(self, params: Mapping[str, Any], target: Scale) -> tuple[list[dict[str, Any]], list[Note]]:
        """Turn base HPs into the settings of each tensor.

        Args:
            params: HP -> value, as in the table.
            target: the scale of the model.

        Returns:
            A dict per tensor, and sentences on HPs that no tensor has. Keys: "name", "role", "shape",
            "optimizer" and its options (for AdamW "lr", "beta1", "beta2", "eps", "weight_decay"), with every
            multiplier that is folded into the tensor; "init", the factor on the standard deviation that the
            base model draws the tensor with; "forward", a multiplier for the forward pass, or 1.

        Raises:
            ParametrizationError: if the model cannot be parametrized.
        """
        from transfer_bo.parametrization.apply import parametrize
        from transfer_bo.parametrization.builds import build_meta, parameters_of

        scale = self.base.replace(**target)
        hps, others = hps_of_tensors(params)
        others += [name for name in hps if name.startswith("forward.")]
        p = parametrize(self.build_model, self.base, scale, self.rule, self.alpha)
        model = build_meta(self.build_model, scale)
        names = {id(parameter): name for name, parameter in parameters_of(model).items()}

        options: dict[str, dict[str, Any]] = {}
        for optimizer in p.optimizers(model, hps):
            for group in optimizer.param_groups:
                of_group = {"optimizer": type(optimizer).__name__, **_options(group)}
                options |= {names[id(parameter)]: of_group for parameter in group["params"]}

        found = []
        general = hps.get("init_std", KINDS["init_std"].default)
        for row in p.table(hps).to_dict("records"):
            name, folded = row["name"], row["applied"] == "folded"
            found.append(
                {
                    "name": name,
                    "role": row["role"],
                    "shape": list(row["shape"]),
                    **options[name],
                    "init": row["init_std"] * general * (row["forward"] if folded else 1.0),
                    "forward": row["forward"] if row["applied"] == "hook" else 1.0,
                }
            )
        notes = [
            Note(
                f"{name} is no setting of a tensor: set it for the whole run.", "hp_of_no_tensor", column=name
            )
            for name in others
        ]
        return found, notes


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: group[key] for key in ("lr", "eps", "weight_decay", "momentum") if key in group}
    return found | dict(zip(("beta1", "beta2"), group.get("betas", ()), strict=False))


def hps_of_tensors(params: Mapping[str, Any]) -> tuple[dict[str, float], list[str]]:
    """Name a table's HPs as in `space.KINDS`: "beta2" becomes "one_minus_beta2".

    Args:
        params: HP -> value.

    Returns:
        The HPs that tensors have, and the names of the others.
    """
    hps: dict[str, float] = {}
    others = []
    for name, value in params.items():
        kind, dot, group = name.partition(".")
        kind = _ALIASES.get(kind, kind)
        if kind in _BETAS and not dot:
            hps[_BETAS[kind]] = 1.0 - float(value)
        elif kind in KINDS:
            hps[f"{kind}{dot}{group}"] = float(value)
        else:
            others.append(name)
    return hps, others
