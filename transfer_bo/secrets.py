"""One mask for passwords, used for everything that is printed, stored, logged or written into a report."""

from __future__ import annotations

import re
from collections.abc import Iterator

__all__ = ["MASK", "hide_passwords"]

MASK = "***"
"""What stands in the place of a password."""

_BEFORE_PASSWORD = re.compile(r"[A-Za-z][\w+.-]{0,30}://[^\s:/]*:")
"""The part of an address up to its password: `scheme://user:`."""

_IN_OPTION = re.compile(
    r"\b[\w-]{0,30}(?:password|passwd|passphrase|pwd|secret|api[_-]?key|access[_-]?key|auth[_-]?token)"
    r"""["']?\s*[=:]\s*"""
    r"""(?P<password>(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^&\s])[^&\s]*)""",
    re.IGNORECASE,
)
"""`?password=PASSWORD&...` in an address, `password='PASSWORD'` or `"password": "PASSWORD"` in options."""


def hide_passwords(text: str) -> str:
    """Replace the passwords of addresses in a text by `***`.

    Where it is unclear how far a password reaches, more is hidden rather than less: a piece of a host's name
    may be lost, but never shown is a piece of a password. A raw space ends a password, as it ends an address.

    Args:
        text: Any text: an address, a sentence with several of them, a traceback, a study file.

    Returns:
        The text, with everything else unchanged.
    """
    spans = [*_in_addresses(text), *(match.span("password") for match in _IN_OPTION.finditer(text))]

    pieces, end = [], 0
    for start, stop in sorted(spans):
        if start >= end:
            pieces += [text[end:start], MASK]
        end = max(end, stop)
    return "".join([*pieces, text[end:]])


def _in_addresses(text: str) -> Iterator[tuple[int, int]]:
    """From `scheme://user:` to the last `@` of the word: a password may itself hold `@`, `/` or `:`."""
    for word in re.finditer(r"\S+", text):
        at = text.rfind("@", *word.span())
        before = _BEFORE_PASSWORD.search(text, word.start(), max(at, word.start()))
        if before is not None:
            yield before.end(), at
