"""The values of command line options, read and checked before any heavy import."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

from transfer_bo.errors import PriorError, ScaleError, SearchSpaceError, TransferError
from transfer_bo.quantities import parse_number

__all__ = [
    "HpRange",
    "parse_drift",
    "parse_hp_kinds",
    "parse_hp_ranges",
    "parse_rates",
    "parse_scale",
    "unique_by_name",
]

V = TypeVar("V")

HpRange = tuple[str, float, float]
"""Kind, lowest and highest value of an HP."""
RANGE_KINDS = ("log", "linear", "one_minus")
"""Kinds of an HP that has a range."""


def unique_by_name(pairs: Sequence[tuple[str, V]], flag: str) -> dict[str, V]:
    """The values of a repeated option by name.

    Raises:
        TransferError: If a name is given twice.
    """
    names = [name for name, _ in pairs]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise TransferError(f"{flag} is given twice for {repeated!r}; give it once.")
    return dict(pairs)


def parse_scale(texts: Sequence[str], flag: str) -> dict[str, float]:
    """The axes in several `AXIS=NUMBER`, such as `n_params=7B`.

    Raises:
        ScaleError: If one is written otherwise, or its number is no number.
    """
    pairs = []
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise ScaleError(f"{flag} {text} is no AXIS=NUMBER; write e.g. {flag} n_params=7B.")
        try:
            pairs.append((name.strip(), parse_number(value, f"{flag} {name.strip()}")))
        except TransferError as error:
            raise ScaleError(str(error)) from None
    return unique_by_name(pairs, flag)


def parse_hp_kinds(texts: Sequence[str]) -> dict[str, str]:
    """The HPs in several `NAME:KIND`, such as `lr:log`.

    Raises:
        SearchSpaceError: If one names no kind.
    """
    pairs = []
    for text in texts:
        name, colon, kind = text.rpartition(":")
        if not colon or not name:
            example = text.strip(":") or "lr"
            raise SearchSpaceError(f"--hp {text} names no kind; write e.g. --hp {example}:log.")
        pairs.append((name, kind))
    return unique_by_name(pairs, "--hp")


def parse_hp_ranges(texts: Sequence[str]) -> dict[str, HpRange]:
    """The HPs in several `NAME:KIND:LOW:HIGH`, such as `lr:log:1e-4:1e-2`.

    Raises:
        SearchSpaceError: If one is written otherwise, or its range is empty.
    """
    pairs = []
    for text in texts:
        parts = text.rsplit(":", 3)
        if len(parts) != 4 or not parts[0]:
            raise SearchSpaceError(f"--hp {text} is no NAME:KIND:LOW:HIGH; write e.g. --hp lr:log:1e-4:1e-2.")
        name, kind, *ends = parts
        try:
            low, high = (parse_number(end, f"--hp {text}: an end of the range") for end in ends)
        except TransferError as error:
            raise SearchSpaceError(str(error)) from None

        if kind not in RANGE_KINDS or not low < high:
            raise SearchSpaceError(
                f"--hp {text}: the kind is {', '.join(RANGE_KINDS[:-1])} or {RANGE_KINDS[-1]}, and the lower "
                "end comes first."
            )
        pairs.append((name, (kind, low, high)))
    return unique_by_name(pairs, "--hp")


def parse_rates(text: str) -> tuple[float, float]:
    """α and β in `ALPHA,BETA`.

    Raises:
        TransferError: If it is written otherwise.
    """
    parts = text.split(",")
    if len(parts) != 2:
        raise TransferError(f"--rates {text} is no ALPHA,BETA; write e.g. --rates 0.5,0.4.")
    alpha, beta = (parse_number(part, f"--rates {text}: one of them") for part in parts)
    return alpha, beta


def parse_drift(texts: Sequence[str]) -> dict[str, dict[str, tuple[float, float]]]:
    """The prior of the drift in several `HP:AXIS=MEAN,SD`, as `{hp: {axis: (mean, sd)}}`.

    Raises:
        PriorError: If one is written otherwise, or its numbers are no normal distribution.
    """
    prior: dict[str, dict[str, tuple[float, float]]] = {}
    for text in texts:
        place, _, numbers = text.partition("=")
        hp, _, axis = place.rpartition(":")
        mean_text, comma, sd_text = numbers.partition(",")
        try:
            mean, sd = float(mean_text), float(sd_text)
        except ValueError:
            mean = sd = math.nan
        if not (hp and axis and comma and math.isfinite(mean) and 0 < sd < math.inf):
            raise PriorError(
                f"--drift {text} is no HP:AXIS=MEAN,SD; write e.g. --drift lr:n_params=-0.4,0.2."
            )
        prior.setdefault(hp, {})[axis] = mean, sd
    return prior
