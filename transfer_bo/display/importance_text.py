"""Importance of HPs as a table by method, and in words: one verdict per HP, and whether scales agree."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from transfer_bo.display.text import interval_text, octaves_text, share_text
from transfer_bo.quantities import counted

if TYPE_CHECKING:
    from transfer_bo.diagnostics.importance import Importance

__all__ = ["agreement_sentences", "method_rows"]

ORDER_TEXT = {
    "stable": "so the order of importance is much the same at all scales.",
    "changes": "so the order of importance changes with scale: do not drop an HP by what small scales show.",
    "undetermined": "which does not tell whether the order is the same at all scales; more runs would.",
}


def method_rows(importance: Importance) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a table: each method's mean share over the scales, and the verdict on each HP."""
    table = importance.by_method()
    rows = [
        [str(hp), *(share_text(float(share)) for share in shares), importance.verdict[str(hp)]]
        for hp, shares in zip(table.index, table.to_numpy(), strict=True)
    ]
    return ["HP", *map(str, table.columns), "verdict"], rows


def agreement_sentences(importance: Importance) -> list[str]:
    """Rank correlation between scales by method, what follows from it, and what was left out."""
    parts = []
    for method, (value, low, high) in importance.agreement.items():
        if math.isnan(value):
            continue
        interval = "" if math.isnan(low) else f" ({interval_text(low, high, 2)})"
        parts.append(f"{octaves_text(value)}{interval} by {method}")
    if not parts:
        return list(importance.left_out)

    scales = counted(len(importance.scales), "scale")
    sentence = (
        f"Rank correlation of importance between {scales}: {', '.join(parts)}; {ORDER_TEXT[importance.order]}"
    )
    return [sentence, *importance.left_out]
