"""A sentence that a reader of an answer should know, and the same for programs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from transfer_bo.secrets import hide_passwords

__all__ = ["Note", "to_json"]


class Note(str):
    """A sentence with a code that does not change when it is worded anew.

    Args:
        text: the sentence.
        code: what it is about, a word with underscores.
        details: plain JSON values: the column, the number of rows, the words or values at fault.

    Attributes:
        code: what it is about.
        details: of the sentence, by name.
    """

    code: str
    details: dict[str, Any]

    def __new__(cls, text: str, code: str, **details: Any) -> Note:
        """Make the sentence; the details are given by name."""
        note = super().__new__(cls, hide_passwords(text))
        note.code = code
        note.details = details
        return note

    def __getnewargs_ex__(self) -> tuple[tuple[str, str], dict[str, Any]]:
        """For copies: a table carries its notes along."""
        return (str(self), self.code), self.details


def to_json(sentences: Iterable[str], code: str = "other") -> list[dict[str, Any]]:
    """Write sentences as plain JSON values.

    Args:
        sentences: notes, or plain sentences.
        code: of plain sentences.

    Returns:
        A dict for each: "code", "text" and "details".
    """
    return [
        {
            "code": getattr(sentence, "code", code),
            "text": str(sentence),
            "details": getattr(sentence, "details", {}),
        }
        for sentence in sentences
    ]
