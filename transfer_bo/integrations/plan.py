"""What all formats are made from: groups of tensors with equal settings, the batch, and remarks."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from transfer_bo.errors import ParametrizationError
from transfer_bo.parametrization import Parametrization
from transfer_bo.quantities import counted
from transfer_bo.run_table.tensor_settings import hps_of_tensors
from transfer_bo.scale import Scale

__all__ = ["Group", "Plan", "SuggestionLike", "make_plan", "numbered_patterns"]

_BATCH = ("batch", "batch_size")
"""HPs that are a batch in sequences."""

_BATCH_TOKENS = ("batch_tokens", "tokens_per_batch")
"""HPs that are a batch in tokens."""

DIGITS = re.compile(r"(?<=\.)\d+(?=\.)")
"""Numbers of blocks and experts in names."""


class SuggestionLike(Protocol):
    """The part of `transfer_bo.Suggestion` that an export needs."""

    @property
    def target(self) -> Scale:
        """Where it applies."""

    @property
    def params(self) -> dict[str, Any]:
        """Its HPs, as searched."""


@dataclass(frozen=True)
class Group:
    """Tensors with equal settings."""

    name: str
    """The module types in it."""
    optimizer: str
    """Name in `parametrization.optimizers.OPTIMIZERS`."""
    tensors: tuple[str, ...]
    """Names, in the model's order."""
    options: Mapping[str, Any]
    """The optimizer's options."""


@dataclass(frozen=True)
class Plan:
    """What is to be set."""

    p: Parametrization
    """At the target."""
    hps: Mapping[str, float]
    """HPs of tensors, in base coordinates."""
    groups: tuple[Group, ...]
    """Every trainable tensor is in one."""
    batch: int | None
    """Sequences per step; None if neither suggestion nor target has a batch."""
    notes: list[str] = field(default_factory=list)
    """What no configuration expresses, one sentence per setting."""


def make_plan(suggestion: SuggestionLike, p: Parametrization, context: int | None = None) -> Plan:
    """Turn a suggestion into groups of tensors.

    Args:
        suggestion: HPs in base coordinates, at its target.
        p: Of the model, at any scale.
        context: Tokens per sequence, for a batch that is given in tokens.

    Raises:
        ParametrizationError: if the model at the target does not correspond to the base, or a batch in tokens
            comes without `context`.
        SearchSpaceError: for an HP that the model has no group for.
    """
    p = p.at(p.base.replace(**suggestion.target))
    hps, others = hps_of_tensors(suggestion.params)
    batch, notes = _batch(suggestion, p.target, context)
    known = {*_BATCH, *_BATCH_TOKENS}
    notes += [
        f"{name} is no setting of a tensor: set it for the whole run." for name in others if name not in known
    ]

    members: dict[tuple[Any, ...], list[str]] = {}
    settings = p.settings(hps)
    for name, of_tensor in settings.items():
        members.setdefault((of_tensor.optimizer, *of_tensor.options.items()), []).append(name)
    groups = [
        Group(
            ", ".join(dict.fromkeys(p.tensors[name].module_type for name in names)),
            optimizer,
            tuple(names),
            dict(options),
        )
        for (optimizer, *options), names in members.items()
    ]

    rescaled = [name for name, of_tensor in settings.items() if not math.isclose(of_tensor.init, 1.0)]
    if rescaled:
        notes.append(
            f"Initial values of {counted(len(rescaled), 'tensor')} differ in size from the base's (e.g. "
            f"{rescaled[0]}): "
            "call p.initialize(model, hps) once the model has memory."
        )
    outputs, inputs = p.hooked_multipliers(hps)
    hooked = [path for path, factor in {**outputs, **inputs}.items() if factor != 1]
    if hooked:
        notes.append(
            f"{counted(len(hooked), 'module needs', 'modules need')} a multiplier in the forward pass "
            f"(e.g. {hooked[0]}): "
            "p.initialize and p.param_groups register them."
        )
    places = [name for name in p.forward_places if f"forward.{name}" in hps]
    if places:
        notes.append(
            f"{counted(len(places), 'multiplier')} that the model names (e.g. {places[0]}) must be set in "
            "it: p.initialize and p.param_groups do."
        )
    if p.folded and any(factor != 1 for factor in p.folded.values()):
        notes.append(
            f"Gradients of {counted(len(p.folded), 'tensor')} with a folded multiplier count by it in "
            "the clipped norm: "
            "clip with p.clip_grad_norm_(model, max_norm) instead of the framework's own clipping."
        )
    return Plan(p, hps, tuple(groups), batch, notes)


def _batch(suggestion: SuggestionLike, target: Scale, context: int | None) -> tuple[int | None, list[str]]:
    """The batch in whole sequences, and a sentence if it had to be rounded.

    Raises:
        ParametrizationError: for a batch in tokens without a context.
    """
    params = suggestion.params
    for name in _BATCH_TOKENS:
        if name in params:
            if context is None:
                raise ParametrizationError(
                    f"{name} = {params[name]!r} is a batch in tokens; give context, the tokens per sequence."
                )
            exact, unit = float(params[name]) / context, f"{name} = {params[name]:g} tokens"
            break
    else:
        given = next((params[name] for name in _BATCH if name in params), target.get("batch"))
        if given is None:
            return None, []
        exact, unit = float(given), f"a batch of {float(given):g} sequences"

    whole = max(1, round(exact))
    rounded = [] if whole == exact else [f"The batch is {whole} whole sequences, where {unit} is suggested."]
    return whole, rounded


def numbered_patterns(names: Collection[str], others: Collection[str], number: str = "*") -> list[str]:
    """Names with their block numbers replaced by a wildcard, where that takes in no other tensor.

    Args:
        names: Of one group.
        others: Of all other groups.
        number: What stands for a number in the result.
    """
    patterns = {name: DIGITS.sub("*", name) for name in names}
    for name, pattern in patterns.items():
        if any(fnmatch.fnmatchcase(other, pattern) for other in others):
            patterns[name] = name
    return [pattern.replace("*", number) for pattern in dict.fromkeys(patterns.values())]
