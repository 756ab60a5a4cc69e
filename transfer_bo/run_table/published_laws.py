"""Published laws for the learning rate and the batch size, to compare a suggestion with; never priors.

    optimum = coefficient · N^a · D^b

Symbols: N = parameters without embeddings ("n_params"), D = tokens of the whole run ("tokens"), C = 6 N D,
the compute in FLOPs.

A law without a coefficient tells only how the optimum moves, so it is anchored at another scale's optimum.
Batch sizes are in tokens. Fitted on other data, models and schedules, these laws differ from each other by
factors; they tell whether a suggestion is out of the ordinary, not whether it is right.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transfer_bo.quantities import is_positive
from transfer_bo.scale import Scale
from transfer_bo.space import is_multiplier
from transfer_bo.synonyms import axis_kind, hp_kind, plain_name, unit_of, without_prefix

__all__ = ["LAWS", "Law", "compare"]


@dataclass(frozen=True)
class Law:
    """One published law.

    Attributes:
        name: of the work.
        hp: kind of HP: "lr" or "batch" (in tokens).
        exponents: kind of axis -> exponent.
        coefficient: value of the HP where all axes are 1; None if the law only tells how it moves.
        source: arXiv number of the paper, or what else it is.
        remark: when it holds.
    """

    name: str
    hp: str
    exponents: Mapping[str, float]
    coefficient: float | None
    source: str
    remark: str = ""

    def growth(self, axes: Mapping[str, float]) -> float:
        """The factor by which the optimum differs from where all axes are 1.

        Args:
            axes: kind of axis -> value.
        """
        return math.exp(
            sum(exponent * math.log(axes.get(axis, 1)) for axis, exponent in self.exponents.items())
        )


def _of_compute(coefficient: float, exponent: float) -> tuple[dict[str, float], float]:
    """A law in C = 6 N D as one in N and D."""
    return {"n_params": exponent, "tokens": exponent}, coefficient * 6**exponent


POSTS = "posts of 2026 on scaling laws for the optimal learning rate and batch"
"""Where Lingle's exponents are from."""

LAWS: tuple[Law, ...] = (
    Law("Complete(d)P", "lr", {"n_params": -0.5, "tokens": -0.5}, None, "2512.22382", "theory: N as width²"),
    Law("Complete(d)P", "lr", {"width": -1.0, "depth": 0.0, "tokens": -0.5}, None, "2512.22382", "theory"),
    Law("Step Law", "lr", {"n_params": -0.713, "tokens": 0.307}, 1.79, "2503.04715", "batch at its optimum"),
    Law("Step Law", "batch", {"tokens": 0.571}, 0.58, "2503.04715"),
    Law("DeepSeek", "lr", *_of_compute(0.3188, -0.125), "2401.02954", "compute-optimal runs"),
    Law("DeepSeek", "batch", *_of_compute(0.2920, 0.3271), "2401.02954", "compute-optimal runs"),
    Law("Porian et al.", "lr", {"n_params": -0.36}, 3.7, "2406.19146", "compute-optimal runs"),
    Law("Porian et al.", "batch", {"n_params": 0.703}, 0.7576, "2406.19146", "compute-optimal runs"),
    Law("Bjorck et al., mildest", "lr", {"tokens": -0.3}, None, "2409.19913", "fixed batch"),
    Law("Bjorck et al., steepest", "lr", {"tokens": -0.7}, None, "2409.19913", "fixed batch"),
    Law("Lingle", "lr", {"n_params": -0.48, "tokens": 0.26}, None, POSTS, "batch at its optimum"),
    Law("Lingle", "batch", {"n_params": 0.0, "tokens": 0.57}, None, POSTS),
)
"""The laws as their papers state them; Porian's unit of the batch is taken to be tokens (not certain)."""


def compare(
    params: Mapping[str, Any],
    target: Scale,
    anchor: Scale,
    optimum: Mapping[str, float],
    kinds: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """Evaluate the laws that apply at the target, beside a suggestion.

    A law applies to an HP of its kind (a batch size only if its name says "tokens") if the scale has its
    axes; one without a coefficient applies if nothing but its axes differs between anchor and target. Where
    the duration is not counted in tokens, but in steps or epochs, only the latter apply.

    Args:
        params: the suggestion, HP -> value.
        target: the scale it is for.
        anchor: the scale at which the optimum is taken as known.
        optimum: the optimum there, by HP.
        kinds: HP or axis -> its kind, where its name does not tell it.

    Returns:
        A dict per law and HP: law, source, hp, value, octaves (suggestion above the law), anchored, remark.
    """
    kinds = kinds or {}
    at_target = {kinds.get(axis, axis_kind(axis)): value * unit_of(axis) for axis, value in target.items()}
    at_anchor = {kinds.get(axis, axis_kind(axis)): value * unit_of(axis) for axis, value in anchor.items()}
    in_tokens = any("token" in name.lower() for axis in target for name in (axis, kinds.get(axis, "")))
    in_tokens = in_tokens or any(plain_name(axis) == "d" for axis in target)
    known = at_target.keys() if in_tokens else at_target.keys() - {"tokens"}
    moved = {axis for axis, value in at_target.items() if value != at_anchor[axis]}

    found = []
    for hp, suggested in params.items():
        comparable = is_positive(suggested)
        for law in LAWS:
            if not comparable or is_multiplier(without_prefix(hp)) or law.hp != kinds.get(hp, hp_kind(hp)):
                continue
            if law.hp == "batch" and "token" not in hp.lower():
                continue

            if law.coefficient is not None and law.exponents.keys() <= known:
                value = law.coefficient * law.growth(at_target)
            elif law.coefficient is None and hp in optimum and moved <= law.exponents.keys():
                value = optimum[hp] * law.growth(at_target) / law.growth(at_anchor)
            else:
                continue

            value /= unit_of(hp) if law.hp == "batch" else 1.0
            found.append(
                {
                    "law": law.name,
                    "source": law.source if " " in law.source else f"arXiv {law.source}",
                    "hp": hp,
                    "value": value,
                    "octaves": math.log2(suggested / value),
                    "anchored": law.coefficient is None,
                    "remark": law.remark,
                }
            )
    return found
