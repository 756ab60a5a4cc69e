"""From a file to a checked `StudyFile`; everything that is wrong with it is said in one sentence."""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from transfer_bo.errors import StudyFileError
from transfer_bo.study_file.checks import check_together
from transfer_bo.study_file.schema import StudyFile

__all__ = ["load_study_file"]


def load_study_file(path: str | Path) -> StudyFile:
    """Read and check a study file; no other file is read, and nothing is written.

    Args:
        path: A TOML file; relative paths in it are relative to its folder.

    Raises:
        StudyFileError: If the file can't be read, or a key in it is missing, unknown or unusable; it names
            file, key and value.
    """
    path = Path(path)
    content = _read_toml(path)
    if "data" not in content and "command" not in content:
        raise StudyFileError(f"{path}: data is missing; add it.")
    if "path" in content:
        raise StudyFileError(_unknown_key(path, ("path",), content["path"]))

    try:
        study_file = StudyFile(path=path.absolute(), **content)
    except ValidationError as error:
        raise StudyFileError(_sentence(path, error)) from None
    check_together(study_file)
    return study_file


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StudyFileError(
            f"{path}: this study file can't be read ({error.strerror}); check the path."
        ) from None
    except UnicodeDecodeError:
        raise StudyFileError(f"{path}: this study file is not UTF-8 text; give a TOML file.") from None
    except tomllib.TOMLDecodeError as error:
        raise StudyFileError(f"{path}: not valid TOML: {error}.") from None


def _sentence(path: Path, error: ValidationError) -> str:
    """One sentence from pydantic's findings: the first, an unknown key before all others."""
    # A misspelt key is also a missing one: the unknown key is the better message.
    first = min(error.errors(include_url=False), key=lambda e: e["type"] != "extra_forbidden")
    location, value = first["loc"], first["input"]
    key = _key(location)

    if first["type"] == "extra_forbidden":
        return _unknown_key(path, location, value)
    if first["type"] == "missing":
        return f"{path}: {key} is missing; add it."
    if first["type"] == "string_pattern_mismatch":
        return f"{path}: {key} = {value!r}: use letters, digits, '.', '_' and '-' only."
    return f"{path}: {key} = {value!r}: {first['msg'].replace('Input should be', 'it should be')}."


def _key(location: tuple[int | str, ...]) -> str:
    """`("ladder", "rungs", 0, "width")` as `ladder.rungs[0].width`; a dotted name is quoted as in TOML."""
    key = ""
    for part in location:
        if isinstance(part, int):
            key += f"[{part}]"
        else:
            key += ("." if key else "") + (f'"{part}"' if "." in part else part)
    return key


def _unknown_key(path: Path, location: tuple[int | str, ...], value: Any) -> str:
    # Walk down the sections to list the keys that are known at this place.
    section: Any = StudyFile
    for part in location[:-1]:
        if part in section.model_fields:  # not for an index of a list or an HP's name
            section = section.model_fields[part].annotation
        for inner in getattr(section, "__args__", ()):  # list[Rung], Rung | None, dict[str, Bounds]
            if hasattr(inner, "model_fields"):
                section = inner

    known = [name for name in section.model_fields if name != "path"]
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known keys there are {', '.join(known)}."
    return f"{path}: {_key(location)} = {value!r}: unknown key; {hint}"
