"""HTML in small pieces: escaped text, tables, figures inside the file, one page that needs nothing else."""

from __future__ import annotations

import base64
import io
import re
import warnings as python_warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import matplotlib

from transfer_bo.display.html import escape, html_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "cards",
    "details",
    "figure",
    "page",
    "paragraph",
    "preformatted",
    "section",
    "table",
    "verdict",
    "warnings",
]

_STYLE = """
body { font: 15px/1.5 system-ui, Roboto, "DejaVu Sans", sans-serif; color: #1c1c1c; background: #fff;
       margin: 0 auto; padding: 1.5rem 2rem 4rem; max-width: 1120px; }
h1 { font-size: 1.7rem; margin: 0; } h2 { font-size: 1.2rem; margin: 2.6rem 0 .4rem; padding-bottom: .2rem;
     border-bottom: 1px solid #ccc; }
p { max-width: 62em; margin: .5rem 0; } .quiet, figcaption { color: #555; font-size: .88rem; }
nav { margin: .6rem 0 1.2rem; font-size: .88rem; } nav a { margin-right: 1.1em; color: #0b5394;
        text-decoration: none; }
.verdict { border-left: 5px solid #666; background: #f4f4f4; padding: .7rem 1rem; margin: 1rem 0; }
.verdict.good { border-color: #00796b; background: #eef7f5; }
.verdict.mixed { border-color: #b26a00; background: #fdf6ea; }
.verdict.bad { border-color: #b3261e; background: #fbf0ef; }
.verdict p { margin: .2rem 0; }
.cards { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1rem 0; padding: 0; list-style: none; }
.cards li { border: 1px solid #d5d5d5; border-radius: 5px; padding: .5rem .9rem; min-width: 11em; }
.cards .what { color: #555; font-size: .82rem; } .cards .value { font-size: 1.35rem; font-weight: 600; }
table { border-collapse: collapse; font-size: .88rem; margin: .7rem 0; font-variant-numeric: tabular-nums; }
th { text-align: left; border-bottom: 2px solid #999; padding: .25rem .8rem .25rem 0;
     vertical-align: bottom; }
td { border-bottom: 1px solid #e3e3e3; padding: .22rem .8rem .22rem 0; vertical-align: top; }
td.n, th.n { text-align: right; padding-right: 1.2rem; } td:first-child { white-space: nowrap; }
.wide { overflow-x: auto; }
figure { margin: .8rem 0; } figure img { width: 100%; height: auto; }
ul.warnings li { margin: .25rem 0; }
pre { background: #f6f6f6; border: 1px solid #e0e0e0; padding: .7rem; overflow-x: auto; font-size: .82rem; }
summary { cursor: pointer; color: #0b5394; margin: .5rem 0; }
"""


def paragraph(words: object, kind: str = "") -> str:
    """A paragraph of plain text; `kind` is a style class."""
    return f'<p class="{kind}">{escape(words)}</p>' if kind else f"<p>{escape(words)}</p>"


def preformatted(words: object) -> str:
    """Text with its line breaks."""
    return f"<pre>{escape(words)}</pre>"


def details(summary: object, content: str) -> str:
    """HTML that opens on a click."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def verdict(kind: str, words: object) -> str:
    """A sentence in a box; `kind` is "good", "mixed", "bad" or empty."""
    return f'<div class="verdict {kind}">{paragraph(words)}</div>'


def cards(items: Iterable[tuple[object, object]]) -> str:
    """Key numbers side by side, each with its name."""
    listed = "".join(
        f'<li><div class="what">{escape(name)}</div><div class="value">{escape(value)}</div></li>'
        for name, value in items
    )
    return f'<ul class="cards">{listed}</ul>'


def warnings(sentences: Iterable[object]) -> str:
    """A list of sentences under the title "Warnings"."""
    listed = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f'<p><b>Warnings</b></p><ul class="warnings">{listed}</ul>'


def table(head: Sequence[object], rows: Iterable[Sequence[object]], digits: int = 4) -> str:
    """A table of plain values (see `display.html.html_table`) that scrolls where it is too wide."""
    return f'<div class="wide">{html_table(head, rows, digits)}</div>'


def figure(drawing: Figure, alt: str, caption: str) -> str:
    """A drawing as an SVG inside the page; as an image, nothing in it can run or clash with another."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "transfer_bo"}), python_warnings.catch_warnings():
        python_warnings.filterwarnings(
            "ignore", message="Glyph .* missing from font"
        )  # a name in a rare script
        drawing.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    data = base64.b64encode(buffer.getvalue()).decode()
    image = f'<img alt="{escape(alt)}" src="data:image/svg+xml;base64,{data}">'
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def section(anchor: str, title: str, *content: str) -> str:
    """A titled part of the page; nothing if it has no content."""
    return (
        f'<section id="{anchor}"><h2>{escape(title)}</h2>{"".join(content)}</section>' if any(content) else ""
    )


def page(title: str, head: str, sections: Sequence[str]) -> str:
    """The whole document, with links to its sections on top.

    Args:
        title: of the window and the page.
        head: HTML between the title and the first section.
        sections: made by `section`; empty ones are left out.
    """
    parts = re.findall(r'<section id="([a-z-]+)"><h2>(.*?)</h2>', "".join(sections))
    links = "".join(f'<a href="#{anchor}">{name}</a>' for anchor, name in parts)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>{escape(title)}</h1>{head}<nav>{links}</nav>\n" + "\n".join(sections) + "</body></html>\n"
    )
