"""Tables in files, as people have them; what a file is follows from its content, not from its name.

    compression    gzip, bzip2, xz, zip with one file, Zstandard (needs pyarrow)
    text           comma, semicolon, tab, pipe or spaces between cells; UTF-8 or UTF-16
    JSON           a list of records, columns, {"columns": ..., "data": ...} or {"header": ..., "rows": ...},
                   or a record per line
    Parquet        (needs pyarrow)

Cells of a text file stay texts, and nulls of a Parquet file stay nulls: what they mean is decided by `cells`.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from transfer_bo.errors import RunTableError
from transfer_bo.notes import Note
from transfer_bo.run_table.nested import flat_record

__all__ = ["read_file", "read_records", "storage_in"]

SEPARATORS = ("\t", ";", "|", ",")
"""What may stand between cells, besides spaces; of several that fit equally well the first is taken."""

DECIMAL_MARKS = {",": ".", ";": ","}
"""Decimal mark of a file by its separator, where that tells: a semicolon leaves the comma to decimals."""

SAMPLE_LINES = 50
"""Lines by which the separator is recognized."""

SAMPLE_BYTES = 1024
"""Bytes by which the kind of a file is recognized."""

MARKS = {
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
"""Byte order marks at the start of a text, and the encoding that each tells."""

UNREADABLE = {
    b"\xd0\xcf\x11\xe0": "an Excel file",
    b"ARROW1": "an Arrow file",
    b"\x89HDF": "an HDF5 file",
    b"\x80\x04": "a pickle, which can run any code",
    b"\x80\x05": "a pickle, which can run any code",
}
"""Kinds of files that are named and refused, by their first bytes."""

TABLE_ENDINGS = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".pq")
"""By which the table is found in an archive that holds other files, too."""

_PARQUET = b"PAR1"
_RULE = re.compile(r"[\s|+:=\-]*(?:--|==)[\s|+:=\-]*|\(\d+ rows?\)\s*")
"""A line that only decorates a table, as in Markdown and in what databases print."""
_SEPARATOR_LINE = re.compile(r"sep=(.)", re.IGNORECASE)
"""The first line of a file that was written for Excel."""


def read_records(data: Any) -> pd.DataFrame | None:
    """Make a table of plain values, as a JSON document holds them.

    Args:
        data: a list of records, a mapping of columns, or a mapping of records.

    Returns:
        The table, what is nested under the names of both with a point between; None if it is no table.
    """
    records = _records(data)
    return (
        None if records is None else pd.DataFrame([flat_record(record) for record in records], dtype=object)
    )


def read_file(path: Path) -> pd.DataFrame:
    """Read a table from a file.

    Args:
        path: of the file.

    Returns:
        The table. Its `attrs` may hold "decimal", the decimal mark of the file where a comma could be either,
        and "notes" on lines that were skipped.

    Raises:
        RunTableError: if there is no such file, or it holds no table.
    """
    if path.is_dir():
        raise RunTableError(f"{path} is a folder; give the file that holds the table.")
    if not path.is_file():
        raise RunTableError(
            f"{path} is not a file; give a CSV, JSON or Parquet file, or the address of a storage such as "
            "sqlite:///study.db."
        )

    try:
        content = _decompressed(path)
        if content.startswith(_PARQUET):
            return _parquet(content, path)
        for start, kind in UNREADABLE.items():
            if content.startswith(start):
                raise RunTableError(f"{path} is {kind}; save the table as CSV, JSON or Parquet.")
        text = _decoded(content)
        return _json(text, path) if text.lstrip()[:1] in ("{", "[") else _csv(text)
    except RunTableError:
        raise
    except (
        *(EOFError, OSError, UnicodeError, ValueError, lzma.LZMAError, zipfile.BadZipFile, csv.Error),
    ) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RunTableError(
            f"{path} can't be read as a table ({reason}); give a CSV in UTF-8 with a header line, JSON or "
            "Parquet."
        ) from None


def storage_in(path: Path) -> str | None:
    """The address of the Optuna storage in a file, or None if it is none.

    Args:
        path: of any file, or of none.
    """
    if not path.is_file():
        return None
    with path.open("rb") as file:
        start = file.read(SAMPLE_BYTES)
    if start.startswith(b"SQLite format 3\x00"):
        return f"sqlite:///{path}"
    if start.startswith(b"{") and b'"op_code"' in start.partition(b"\n")[0]:
        return f"journal:///{path}"
    return None


def _decompressed(path: Path) -> bytes:
    """The content of a file, unpacked as often as it is packed.

    Raises:
        RunTableError: for an archive of several files, or where a library is missing.
    """
    content = path.read_bytes()
    unpacked = next((unpack for start, unpack in _UNPACK.items() if content.startswith(start)), None)
    return content if unpacked is None else unpacked(content, path)


def _unzipped(content: bytes, path: Path) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = [
            name
            for name in archive.namelist()
            if not name.endswith("/")
            and not name.startswith("__MACOSX")
            and not Path(name).name.startswith(".")
        ]
        if "[Content_Types].xml" in names:
            raise RunTableError(f"{path} is an Excel file; save the table as CSV, JSON or Parquet.")
        tables = [name for name in names if name.lower().endswith(TABLE_ENDINGS)]
        names = tables if len(tables) == 1 else names
        if len(names) != 1:
            raise RunTableError(f"{path} holds {len(names)} files; give an archive of one table.")
        return archive.read(names[0])


def _zstd_decompressed(content: bytes, path: Path) -> bytes:
    try:
        import pyarrow as pa
    except ImportError:
        raise RunTableError(
            f"Reading {path} needs pyarrow; pip install pyarrow, or unpack the file."
        ) from None
    with pa.CompressedInputStream(pa.BufferReader(content), "zstd") as stream:
        return bytes(stream.read())


_UNPACK: dict[bytes, Callable[[bytes, Path], bytes]] = {
    b"\x1f\x8b": lambda content, _: gzip.decompress(content),
    b"BZh": lambda content, _: bz2.decompress(content),
    b"\xfd7zXZ\x00": lambda content, _: lzma.decompress(content),
    b"PK\x03\x04": _unzipped,
    b"\x28\xb5\x2f\xfd": _zstd_decompressed,
}
"""How a file is unpacked, by its first bytes."""


def _decoded(content: bytes) -> str:
    """A text; one that is not in UTF-8 is taken for that of a Western European Windows."""
    encoding = next((code for mark, code in MARKS.items() if content.startswith(mark)), None)
    if encoding is not None:
        return content.decode(encoding)
    if b"\x00" in content[:SAMPLE_BYTES]:
        raise ValueError("it holds bytes that no text has")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("cp1252")


def _parquet(content: bytes, path: Path) -> pd.DataFrame:
    """A Parquet file, nulls as nulls and whole numbers as whole numbers."""
    try:
        return pd.read_parquet(io.BytesIO(content), dtype_backend="numpy_nullable")
    except ImportError:
        raise RunTableError(f"Reading {path} needs pyarrow; pip install pyarrow, or give a CSV.") from None


def _csv(text: str) -> pd.DataFrame:
    """Cells between separators, all of them as texts; the first line that is not empty is the header."""
    lines = [line for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n") if line.strip()]
    stated = _SEPARATOR_LINE.fullmatch(lines[0].strip()) if lines else None
    lines = [line for line in lines[1 if stated else 0 :] if not _RULE.fullmatch(line)]
    if not lines:
        raise ValueError("it is empty")

    lines = _without_comments(lines)
    separator = stated.group(1) if stated else _separator(lines)
    rows = [row for row in _split(lines, separator) if not (row[0].startswith("#") and len(row) == 1)]
    header = [name.strip() for name in rows[0]]
    width = len(header)
    long = next((i for i, row in enumerate(rows) if len(row) > width and any(row[width:])), None)
    if long is not None:
        raise ValueError(f"row {long} has {len(rows[long])} cells, the header {width}")
    filled = [[*row[:width], *[""] * (width - len(row))] for row in rows[1:]]

    table = pd.DataFrame(filled, columns=header, dtype=object)
    keep = [i for i, name in enumerate(header) if name or not _says_nothing([row[i] for row in filled])]
    table = table.iloc[:, keep]
    table.attrs["decimal"] = DECIMAL_MARKS.get(separator)
    return table


def _without_comments(lines: list[str]) -> list[str]:
    """Lines from the header on; a header may be a comment, as numpy writes it, but others may not."""
    n_comments = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    if n_comments == 0:
        return lines

    header = lines[n_comments - 1].lstrip("# ")
    below = lines[n_comments:]
    is_header = bool(below) and len(_split([header], _separator([header]))[0]) == len(
        _split(below[:1], _separator(below[:1]))[0]
    )
    return [header, *below] if is_header and not below[0][:1].isalpha() else below


def _split(lines: list[str], separator: str) -> list[list[str]]:
    """The cells of each row."""
    if separator == " ":
        return [line.split() for line in lines]
    return list(csv.reader(io.StringIO("\n".join(lines)), delimiter=separator, strict=True))


def _says_nothing(cells: list[str]) -> bool:
    """Whether a column without a name is empty, or counts the rows."""
    return not any(cell.strip() for cell in cells) or cells == [str(i) for i in range(len(cells))]


def _separator(lines: list[str]) -> str:
    """The separator that gives all lines the same number of cells, and most of them."""
    sample = lines[:SAMPLE_LINES]

    def fit(separator: str) -> tuple[bool, int]:
        counts = [len(row) for row in csv.reader(sample, delimiter=separator)]
        return counts[0] > 1 and max(counts) <= counts[0], counts[0]

    best = max(SEPARATORS, key=fit)
    if fit(best)[0]:
        return best
    counts = {len(line.split()) for line in sample}
    return " " if len(counts) == 1 and max(counts) > 1 else best


def _json(text: str, path: Path) -> pd.DataFrame:
    """Records, columns or a record per line; what is nested gets the names of both, with a point between."""
    notes: list[Note] = []
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        data = _json_lines(text, path, notes)
        if data is None:
            raise ValueError(f"line {error.lineno} is no JSON: {error.msg}") from None

    table = read_records(data)
    if table is None:
        raise RunTableError(f"{path} holds no table; give a list of records, or columns of equal length.")
    table.attrs["notes"] = notes
    return table


def _json_lines(text: str, path: Path, notes: list[Note]) -> list[Any] | None:
    """A record per line, or None if the first line is none; a last line that was cut short is skipped."""
    lines = [line for line in text.splitlines() if line.strip()]
    records = []
    for i, line in enumerate(lines):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if i == 0:
                return None
            if i < len(lines) - 1:
                raise ValueError(f"line {i + 1} is no JSON: {error.msg}") from None
            notes.append(
                Note(f"The last line of {path} was cut short and skipped.", "line_cut_short", rows=1)
            )
    return records if all(isinstance(record, Mapping) for record in records) else None


def _records(data: Any) -> list[Mapping[str, Any]] | None:
    """The rows in a JSON document, or None if it is no table."""
    if isinstance(data, list):
        return data if all(isinstance(record, Mapping) for record in data) else None
    if not isinstance(data, Mapping):
        return None

    if isinstance(data.get("header"), list) and isinstance(data.get("rows"), list):
        data = {"columns": data["header"], "data": data["rows"]}  # as TensorBoard writes it
    if isinstance(data.get("data"), list):
        if isinstance(data.get("columns"), list):
            return [dict(zip(map(str, data["columns"]), row, strict=True)) for row in data["data"]]
        return _records(data["data"])
    values = list(data.values())
    inside = [value for value in values if isinstance(value, list) and value]
    inside = [value for value in inside if all(isinstance(record, Mapping) for record in value)]
    if len(inside) == 1 and not any(isinstance(value, Mapping) for value in values):
        return list(inside[0])  # {"project": "mine", "runs": [...]}
    if values and all(isinstance(value, list) for value in values):
        return [dict(zip(data, row, strict=True)) for row in zip(*values, strict=True)]
    if values and all(isinstance(value, Mapping) for value in values):
        if all(str(key).isdigit() for value in values for key in value):
            rows = dict.fromkeys(key for value in values for key in value)
            return [{name: data[name].get(row) for name in data} for row in rows]
        return values
    return [data]
