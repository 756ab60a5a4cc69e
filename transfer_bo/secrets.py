"""One mask for passwords, used for everything that is printed, stored, logged or written into a report."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

__all__ = ["MASK", "hide_passwords", "hide_secret_values", "is_secret"]

MASK = "***"
"""What stands in the place of a password."""

MIN_LENGTH = 4
"""A shorter value of a secret variable is no secret, and too likely to be part of other words."""

_SLASHES = r"(?::(?:\\?/){2}|%3A%2F%2F)"
"""`://`, also as JSON may escape it, and as an address within an address is encoded."""

_AS_PATH = r"(?::/)"
"""What is left of it in an address that was taken for a path."""

_BEFORE_PASSWORD = re.compile(
    rf"[A-Za-z][\w+.-]{{0,30}}(?:{_SLASHES}|{_AS_PATH})(?!\\?/)(?:(?!%3A)[^\s:]){{0,200}}(?::|%3A)",
    re.IGNORECASE,
)
"""The part of an address up to its password: `scheme://user:`."""

_CUT_SHORT = re.compile(
    rf"[A-Za-z][\w+.-]{{0,30}}{_SLASHES}[^\s:/\[@%]{{0,200}}:"
    r"(?![^\s@]{0,300}@|\S{0,300}%40|\d{1,5}(?!\w))(?P<password>[^\s'\"]+)"
)
"""An address that ends before its `@`: what follows the colon is a password unless it is a port."""

_TOKEN_AS_USER = re.compile(r"https?://(?P<password>[^\s/:@?#]{4,200})(?=@)", re.IGNORECASE)
"""`https://TOKEN@github.com/me/project`."""

_SECRET = (
    r"(?:password|passwd|passphrase|pwd|secret|credential|(?:api|access|private|signing)[_-]?key"
    r"|(?:auth|access|api|bearer|refresh|session|security|hf|github|gh|gitlab|wandb|hub)[_-]?token"
    r"|(?-i:[A-Z0-9]_TOKEN(?![A-Za-z]))|(?-i:[A-Z0-9]_PASS(?![A-Za-z])))"
)
"""What the names of secrets contain. `HF_TOKEN` is one; `tokens`, of text, are none."""

_IN_NAME = re.compile(rf"(?!(?:OLD)?PWD$).*{_SECRET}", re.IGNORECASE)

_VALUE = r"""(?P<password>(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^&\s])[^&\s]*)"""

_IN_OPTION = re.compile(rf"""\b[\w-]{{0,30}}{_SECRET}\w{{0,10}}["']?\s*[=:]\s*{_VALUE}""", re.IGNORECASE)
"""`?password=PASSWORD&...` in an address, `password='PASSWORD'` or `"password": "PASSWORD"` in options."""

_SHORT_NAMES = re.compile(
    rf"""(?<![A-Za-z0-9])(?:token|pass|pw|auth|sig|signature|X-Amz-[\w-]{{1,30}})["']?\s*[=:]\s*"""
    rf"""(?![\d.]+(?:e[+-]?\d+)?(?![\w])){_VALUE}""",
    re.IGNORECASE,
)
"""The same under names that are parts of many words; a number is no secret."""

_IN_ARGUMENT = re.compile(rf"--[\w-]{{0,30}}(?:{_SECRET}|token|pass)\s+(?!-){_VALUE}", re.IGNORECASE)
"""`--password PASSWORD` of a command."""

_IN_HEADER = re.compile(
    r"(?:Authorization\W{1,6}[A-Za-z]{1,20}|\b(?-i:Bearer))\s+(?P<password>[\w+/.=~-]{6,})", re.IGNORECASE
)
"""`Authorization: Basic TOKEN` of a request."""

_KNOWN_SHAPES = re.compile(r"\b(?:hf_|sk-|gh[pousr]_|github_pat_|glpat-|xox[abprs]-|AKIA)[\w-]{12,200}")
"""Keys of Hugging Face, OpenAI, GitHub, GitLab, Slack and AWS, wherever they stand."""


def hide_passwords(text: str) -> str:
    """Replace the passwords of addresses in a text by `***`.

    Where it is unclear how far a password reaches, more is hidden rather than less: a piece of a host's name
    may be lost, but never shown is a piece of a password. A raw space ends a password, as it ends an address.

    Args:
        text: Any text: an address, a sentence with several of them, a traceback, a study file.

    Returns:
        The text, with everything else unchanged.
    """
    named = (_IN_OPTION, _SHORT_NAMES, _IN_ARGUMENT, _IN_HEADER, _TOKEN_AS_USER, _CUT_SHORT)
    spans = [*_in_addresses(text), *(match.span() for match in _KNOWN_SHAPES.finditer(text))]
    spans += [match.span("password") for of in named for match in of.finditer(text)]

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
        at = max(text.rfind("@", *word.span()), text.rfind("%40", *word.span()))
        before = _BEFORE_PASSWORD.search(text, word.start(), max(at, word.start()))
        if before is not None:
            yield before.end(), at
