"""Directions of the updates over widths, where `transfer-bo trajectory` has trained."""

from __future__ import annotations

from transfer_bo.diagnostics.widths import WidthComparison
from transfer_bo.display.trajectory import comparison_sentences, draw_comparison
from transfer_bo.report import page

__all__ = ["directions"]

ABOUT_DIRECTIONS = (
    "The change of the loss in training, split by directions of the weight updates (2512.22768). "
    "Width-stable: the top directions of every matrix, their number κ at each learning rate written beside "
    "its point, chosen so that both widths agree; width-sensitive: all others. Where the accepted κ gives no "
    "finite bound, the κ of least bound is drawn. If the first part is alike and the second flat, the "
    "optimum cannot move by more than t."
)


def directions(found: WidthComparison | None) -> list[str]:
    """The figure and a paragraph in words; nothing where no training was watched."""
    if found is None:
        return []
    alt = "Loss over the learning rate at each width, split into top directions and the others"
    return [
        page.paragraph(" ".join(comparison_sentences(found))),
        page.figure(draw_comparison(found), alt, ABOUT_DIRECTIONS),
    ]
