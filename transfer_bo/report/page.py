"""HTML in small pieces: escaped text, tables, figures inside the file, one page that needs nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from transfer_bo.display.html import escape, html_table
from transfer_bo.report.inline_svg import inline_svg

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
:root { color-scheme: light dark; --ink: #1c1c1c; --paper: #fff; --quiet: #555; --line: #ccc;
        --faint: #e3e3e3; --box: #f4f4f4; --link: #0b5394; --good: #00796b; --mixed: #b26a00; --bad: #b3261e;
        --good-box: #eef7f5; --mixed-box: #fdf6ea; --bad-box: #fbf0ef; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e4e4; --paper: #161616; --quiet: #a8a8a8; --line: #555; --faint: #333; --box: #242424;
          --link: #8ab8e8; --good: #4db6a6; --mixed: #e0a850; --bad: #ef8a82; --good-box: #16302b;
          --mixed-box: #33280f; --bad-box: #381a18; }
  figure svg { filter: invert(.914) hue-rotate(180deg); }
}
body { font: 15px/1.5 system-ui, Roboto, "DejaVu Sans", sans-serif; color: var(--ink);
       background: var(--paper); margin: 0 auto; padding: 1.5rem 2rem 4rem; max-width: 1120px; }
h1 { font-size: 1.7rem; margin: 0; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .4rem; padding-bottom: .2rem; border-bottom: 1px solid var(--line); }
p { max-width: 62em; margin: .5rem 0; } .quiet, figcaption { color: var(--quiet); font-size: .88rem; }
nav { margin: .6rem 0 1.2rem; font-size: .88rem; }
nav a { display: inline-block; margin-right: 1.1em; color: var(--link); text-decoration: none; }
.verdict { border-left: 5px solid var(--quiet); background: var(--box); padding: .7rem 1rem; margin: 1rem 0; }
.verdict.good { border-color: var(--good); background: var(--good-box); }
.verdict.mixed { border-color: var(--mixed); background: var(--mixed-box); }
.verdict.bad { border-color: var(--bad); background: var(--bad-box); }
.verdict p { margin: .2rem 0; }
.cards { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1rem 0; padding: 0; list-style: none; }
.cards li { border: 1px solid var(--line); border-radius: 5px; padding: .5rem .9rem; min-width: 9em; }
.cards .what { color: var(--quiet); font-size: .82rem; }
.cards .value { font-size: 1.35rem; font-weight: 600; white-space: pre-wrap; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; margin: .7rem 0; font-variant-numeric: tabular-nums; }
th { text-align: left; border-bottom: 2px solid var(--line); padding: .25rem .8rem .25rem 0;
     vertical-align: bottom; }
td { border-bottom: 1px solid var(--faint); padding: .22rem .8rem .22rem 0; vertical-align: top;
     min-width: 9em; }
td.n, th.n { text-align: right; padding-right: 1.2rem; min-width: 0; }
td.n, td:first-child { white-space: nowrap; }
figure { margin: .8rem 0; } figure svg { width: 100%; min-width: 46rem; height: auto; }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
ul.warnings li { margin: .25rem 0; }
pre { background: var(--box); border: 1px solid var(--faint); padding: .7rem; overflow-x: auto;
      font-size: .82rem; }
summary { cursor: pointer; color: var(--link); margin: .5rem 0; }
@media (max-width: 40rem) { body { padding: 1rem 1rem 3rem; } }
@media print { details { display: block; } .wide { overflow: visible; } figure svg { min-width: 0; } }
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
    """A drawing as SVG inside the page; where the page is narrow it scrolls rather than shrinks."""
    svg = inline_svg(drawing, alt, getattr(drawing, "tips", {}))
    return f'<figure><div class="wide">{svg}</div><figcaption>{escape(caption)}</figcaption></figure>'


def section(anchor: str, title: str, *content: str) -> str:
    """A titled part of the page; nothing if it has no content."""
    return (
        f'<section id="{anchor}"><h2>{escape(title)}</h2>{"".join(content)}</section>' if any(content) else ""
    )


def page(title: str, head: str, sections: Sequence[str]) -> str:
    """The whole document, with links to its sections on top.

    Args:
        title: Title of the window and the page.
        head: HTML between the title and the first section.
        sections: Parts made by `section`; empty ones are left out.
    """
    parts = re.findall(r'<section id="([a-z-]+)"><h2>(.*?)</h2>', "".join(sections))
    links = "".join(f'<a href="#{anchor}">{name}</a>' for anchor, name in parts)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>{escape(title)}</h1>{head}<nav>{links}</nav>\n" + "\n".join(sections) + "</body></html>\n"
    )
