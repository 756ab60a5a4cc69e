"""Errors that a user can act on."""

from __future__ import annotations

import re

__all__ = ["Diverged", "Preempted", "TransferError", "hide_passwords"]

_IN_ADDRESS = re.compile(r"([A-Za-z][\w+.-]*://[^\s:/@'\"]*):[^\s'\"]*@")
_IN_QUERY = re.compile(
    r"([?&\s](?:password|passwd|pwd|sslpassword)\s*=\s*)('[^']*'|[^&\s'\"]+)", re.IGNORECASE
)


def hide_passwords(text: str) -> str:
    """A text with the passwords of database addresses in it replaced by `***`.

    Greedy on purpose: a password may itself hold `@` or `/`, and hiding a piece of a host name is no harm.
    """
    return _IN_QUERY.sub(r"\1***", _IN_ADDRESS.sub(r"\1:***@", text))


class TransferError(ValueError):
    """Bad input: one sentence that says what is wrong, the value, and what to do.

    The command line prints the sentence and ends with exit code 2; it never shows a traceback for it.
    Passwords in addresses are never shown. Line breaks in a value it names (of a column, say) become spaces.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(" ".join(hide_passwords(sentence).splitlines()))


class Diverged(RuntimeError):
    """A training run blew up (loss not finite, or far above where it started).

    Raise it from an objective under `transfer_bo.objective` to say "these HPs are unstable at this scale".
    """


class Preempted(BaseException):
    """A run was stopped from outside before its end: it says nothing about its HPs and may go on elsewhere.

    No `Exception`, like `KeyboardInterrupt`: an objective that catches all errors must not swallow it.

    Args:
        message: What happened.
        died: A part of it was killed; after a few times the run is not tried again.
    """

    def __init__(self, message: str = "", *, died: bool = False) -> None:
        super().__init__(message)
        self.died = died
