"""One mask for passwords, used for everything that is printed, stored, logged or written into a report."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

__all__ = ["MASK", "hide_passwords", "hide_secret_values", "is_secret"]

MASK = "***"
"""What stands in the place of a password."""

MIN_LENGTH = 4
"""A shorter value of a secret variable is no secret, and too likely to be part of other words."""

_BEFORE_PASSWORD = re.compile(r"[A-Za-z][\w+.-]{0,30}://[^\s:/]*:")
"""The part of an address up to its password: `scheme://user:`."""

_SECRET = (
    r"(?:password|passwd|passphrase|pwd|secret|api[_-]?key|access[_-]?key|auth[_-]?token"
    r"|(?-i:[A-Z0-9]_TOKEN(?![A-Za-z])))"
)
"""What the names of secrets contain. `HF_TOKEN` is one; `tokens`, of text, are none."""

_IN_NAME = re.compile(rf"(?!(?:OLD)?PWD$).*{_SECRET}", re.IGNORECASE)

_IN_OPTION = re.compile(
    rf"\b[\w-]{{0,30}}{_SECRET}"
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


def is_secret(name: str) -> bool:
    """Whether an environment variable of this name holds a secret."""
    return _IN_NAME.match(name) is not None


def hide_secret_values(text: str, environment: Mapping[str, str]) -> str:
    """Replace what the secret variables of an environment hold by `***`, wherever it stands in a text.

    A program may print the password that it was given without saying that it is one.

    Args:
        text: Any text, e.g. what a program wrote to standard error.
        environment: The variables that the program was given.
    """
    secrets = {value for name, value in environment.items() if is_secret(name) and len(value) >= MIN_LENGTH}
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, MASK)
    return hide_passwords(text)


def _in_addresses(text: str) -> Iterator[tuple[int, int]]:
    """From `scheme://user:` to the last `@` of the word: a password may itself hold `@`, `/` or `:`."""
    for word in re.finditer(r"\S+", text):
        at = text.rfind("@", *word.span())
        before = _BEFORE_PASSWORD.search(text, word.start(), max(at, word.start()))
        if before is not None:
            yield before.end(), at
