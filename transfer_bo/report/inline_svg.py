"""A matplotlib figure as SVG elements of an HTML page: text stays text, marks show their values on hover."""

from __future__ import annotations

import io
import warnings
import zlib
from collections.abc import Mapping, Sequence
from xml.etree import ElementTree

import matplotlib
from matplotlib.figure import Figure

from transfer_bo.secrets import hide_passwords

__all__ = ["inline_svg"]

SVG = "{http://www.w3.org/2000/svg}"
HREF = "{http://www.w3.org/1999/xlink}href"
DROPPED = (f"{SVG}metadata", f"{SVG}style")
"""Elements that say nothing, or that would apply to the whole page."""


def inline_svg(drawing: Figure, label: str, tips: Mapping[str, Sequence[str]]) -> str:
    """The figure as an `<svg>` element that needs nothing else and cannot clash with another on the page.

    Args:
        drawing: The figure.
        label: What it shows, for those who do not see it; different for each figure of a page.
        tips: Group id -> text of each mark in the group, shown on hover.
    """
    root = ElementTree.fromstring(_save(drawing))
    prefix = f"f{zlib.crc32(label.encode()):x}-"
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag in DROPPED]:
            parent.remove(child)
    for group in root.iter(f"{SVG}g"):
        _add_tips(group, tips.get(group.get("id", ""), ()))

    for element in root.iter():
        element.tag = element.tag.removeprefix(SVG)
        element.text = hide_passwords(element.text) if element.text else element.text
        for key, value in list(element.attrib.items()):
            if key == "id":
                element.set(key, prefix + value)
            elif key == HREF:
                del element.attrib[key]
                element.set("href", f"#{prefix}{value[1:]}" if value.startswith("#") else value)
            elif "url(#" in value:
                element.set(key, value.replace("url(#", f"url(#{prefix}"))
    root.set("role", "img")
    root.set("aria-label", hide_passwords(label))
    return ElementTree.tostring(root, encoding="unicode")


def _save(drawing: Figure) -> bytes:
    buffer = io.BytesIO()
    with (
        matplotlib.rc_context({"svg.hashsalt": "transfer_bo", "svg.fonttype": "none"}),
        warnings.catch_warnings(),
    ):
        # The browser has the fonts for names in rare scripts.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        drawing.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _add_tips(group: ElementTree.Element, texts: Sequence[str]) -> None:
    """A title for each mark of a group; for the group itself where it is drawn as one."""
    defined = {path for defs in group.iter(f"{SVG}defs") for path in defs.iter()}
    marks = [mark for mark in group.iter() if mark.tag in (f"{SVG}use", f"{SVG}path") and mark not in defined]
    targets = marks if len(marks) == len(texts) else [group] if len(texts) == 1 else []
    for mark, text in zip(targets, texts, strict=False):
        title = ElementTree.Element(f"{SVG}title")
        title.text = text
        mark.insert(0, title)
