"""Addresses of storages: the file that one names, and what is wrong with how one is written.

sqlite:///study.db            a file, relative to a folder; with a fourth slash the path is absolute
sqlite:///study.db?timeout=9  what follows the question mark is for SQLite
journal:///study.log          likewise; the absolute path /shared/study.log may also be written with three
slashes, journal:///shared/study.log, if there is no folder `shared` here
postgresql://..., grpc://...  a server: no file
"""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["absolute_address", "describe_mistake", "file_of", "has_password"]

_SQLITE = re.compile(
    r"(?P<scheme>sqlite(?:\+\w+)?:///)(?P<uri>file:)?(?P<path>[^?]*)(?P<query>\?.*)?", re.DOTALL
)

_JOURNAL = "journal:///"

_TWO_SLASHES = re.compile(r"(?P<scheme>sqlite(?:\+\w+)?|journal)://(?P<path>[^/].*)", re.DOTALL)

_PASSWORD = re.compile(r"[A-Za-z][\w+.-]*://[^\s:/?#]*:(?P<password>.*)@[^@]*", re.DOTALL)
"""Up to the last `@`, because a password may hold one by mistake."""

_PORT_AND_MORE = re.compile(r"\d*(?:/[^?]*)?\?")
"""What is no password but `5432/database?option=a` before an `@`."""


def file_of(url: str, folder: Path = Path()) -> Path | None:
    """The file that an address names; None if it names a server, or memory.

    Args:
        url: The address of a storage.
        folder: What relative paths are relative to; by default the current folder.
    """
    sqlite = _SQLITE.fullmatch(url)
    if sqlite is not None:
        path = sqlite["path"]
        return folder / path if path and path != ":memory:" else None
    if url.startswith(_JOURNAL):
        return _journal_file(url.removeprefix(_JOURNAL), folder)
    return None


def _journal_file(path: str, folder: Path) -> Path:
    relative, absolute = folder / path, Path("/") / path
    is_elsewhere = not relative.parent.is_dir() and absolute.parent.is_dir()
    return absolute if is_elsewhere else relative


def absolute_address(url: str, folder: Path) -> str:
    """The address with the path of its file, if it names one, made absolute.

    Args:
        url: The address of a storage.
        folder: What a relative path is relative to.
    """
    file = file_of(url, folder)
    if file is None:
        return url
    sqlite = _SQLITE.fullmatch(url)
    if sqlite is None:
        return f"{_JOURNAL}{file.resolve()}"
    return f"{sqlite['scheme']}{sqlite['uri'] or ''}{file.resolve()}{sqlite['query'] or ''}"


def _password_of(url: str) -> str | None:
    found = _PASSWORD.fullmatch(url)
    if found is None or _PORT_AND_MORE.match(found["password"]):
        return None
    return found["password"]


def has_password(url: str) -> bool:
    """Whether an address holds a password, before its host or among its options."""
    return _password_of(url) is not None or re.search(r"[?&]\w*password=", url, re.IGNORECASE) is not None


def describe_mistake(url: str) -> str | None:
    """What is wrong with how an address is written and what to do, as the end of a sentence; None if nothing.

    A password with a raw `@` would be cut there, and its rest be shown as the name of a host.
    """
    if "@" in (_password_of(url) or ""):
        return "its password holds an @; write %40 in its place."
    if url == "sqlite://" or ":memory:" in url:
        return "worker processes can't share memory; give a file."
    two_slashes = _TWO_SLASHES.fullmatch(url)
    if two_slashes is not None:
        return f"a slash is missing; write {two_slashes['scheme']}:///{two_slashes['path']}."
    return None
