"""HTML in small pieces: escaped text and tables of plain values."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from transfer_bo.display.tables import is_numeric
from transfer_bo.display.text import number_text
from transfer_bo.secrets import hide_passwords

__all__ = ["escape", "html_table"]


def escape(value: object) -> str:
    """Any value as HTML text: without passwords of addresses, then escaped."""
    return html.escape(hide_passwords(str(value)))


def html_table(head: Sequence[object], rows: Iterable[Sequence[object]], digits: int = 4) -> str:
    """A table of plain values, written by `number_text`; a column of numbers has the class "n".

    Args:
        head: Names of the columns.
        rows: A cell for each column.
        digits: Significant digits of a number.
    """
    cells = [[number_text(cell, digits) for cell in row] for row in rows]
    numeric = [bool(cells) and all(is_numeric(row[i]) for row in cells) for i in range(len(head))]
    styles = [' class="n"' if right else "" for right in numeric]

    def line(tag: str, values: Sequence[object]) -> str:
        filled = (
            f"<{tag}{style}>{escape(value)}</{tag}>" for value, style in zip(values, styles, strict=True)
        )
        return f"<tr>{''.join(filled)}</tr>"

    lines = [line("th", head), *(line("td", row) for row in cells)]
    return f"<table>{''.join(lines)}</table>"
