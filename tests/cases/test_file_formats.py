"""A table in a file is the table, whatever separator, decimal mark, compression or encoding it has."""

from __future__ import annotations

import builtins
import bz2
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pyarrow as pa
import pytest
from generated_tables import PLAIN, codes, rows_of, tables, understood
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from typer.testing import CliRunner

from transfer_bo.cli import app
from transfer_bo.errors import RunTableError
from transfer_bo.run_table.read import read_table


def zipped(content: bytes) -> bytes:
    """An archive of one file, with the folder that macOS adds."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("results/runs.csv", content)
        archive.writestr("__MACOSX/._runs.csv", b"\x00")
    return packed.getvalue()


def zstd(content: bytes) -> bytes:
    """As `zstd` packs it."""
    packed = pa.BufferOutputStream()
    with pa.CompressedOutputStream(packed, "zstd") as stream:
        stream.write(content)
    return bytes(packed.getvalue())


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zip": zipped,
    ".zst": zstd,
}

QUIET = [HealthCheck.function_scoped_fixture]


@settings(max_examples=80, deadline=None, suppress_health_check=QUIET)
@given(
    table=tables(),
    separator=st.sampled_from([",", ";", "\t", "|", " "]),
    decimal=st.sampled_from([".", ","]),
    ending=st.sampled_from([".csv", ".tsv", ".txt", ".dat", ""]),
    packing=st.sampled_from(list(PACKED)),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    newline=st.sampled_from(["\n", "\r\n"]),
    index=st.booleans(),
)
def test_text_files(
    tmp_path: Path,
    table: pd.DataFrame,
    separator: str,
    decimal: str,
    ending: str,
    packing: str,
    encoding: str,
    newline: str,
    index: bool,
) -> None:
    """The runs are those of the table in memory, to the last digit."""
    if separator == decimal or (separator == " " and index):
        return
    text = table.to_csv(None, sep=separator, decimal=decimal, index=index, lineterminator=newline)
    path = tmp_path / f"runs{ending}{packing}"
    path.write_bytes(PACKED[packing](text.encode(encoding)))

    rows = understood(path)

    assert rows_of(understood(table)) == rows_of(rows)
    assert [] == codes(rows)


@pytest.mark.parametrize("orient", ["records", "columns", "split", "table", "index"])
@pytest.mark.parametrize("packing", ["", ".gz"])
def test_json_as_pandas_writes_it(orient: Any, packing: str, tmp_path: Path) -> None:
    """Records, columns, and the other ways."""
    path = tmp_path / f"runs.json{packing}"
    path.write_bytes(PACKED[packing](PLAIN.to_json(orient=orient).encode()))

    assert rows_of(understood(PLAIN)) == rows_of(understood(path))


NESTED = [
    {"config": {"model": {"width": row["width"]}, "lr": row["lr"]}, "summary": {"loss": row["loss"]}}
    for row in PLAIN.to_dict("records")
]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(NESTED),
        json.dumps({"runs": NESTED}),
        json.dumps({"a": NESTED[0], **{str(i): row for i, row in enumerate(NESTED[1:])}}),
        "\n".join(map(json.dumps, NESTED)),
        "\n\n".join(map(json.dumps, NESTED)) + "\n",
    ],
)
def test_nested_json(text: str, tmp_path: Path) -> None:
    """As trackers write it: what is nested gets the names of both."""
    path = tmp_path / "runs.jsonl"
    path.write_text(text)

    rows = understood(path, ["config.model.width"], {"config.lr": "log"}, "summary.loss")

    assert rows_of(understood(PLAIN)) == rows_of(rows)


def test_a_last_line_that_was_cut_short_is_skipped_with_a_note(tmp_path: Path) -> None:
    """A killed program leaves half a line; in the middle it is an error."""
    lines = [json.dumps(row) for row in PLAIN.to_dict("records")]
    path = tmp_path / "runs.jsonl"
    path.write_text("\n".join([*lines, lines[0][:20]]))

    rows = understood(path)
    path.write_text("\n".join([lines[0], lines[1][:20], *lines[2:]]))

    assert rows_of(understood(PLAIN)) == rows_of(rows)
    assert ["line_cut_short"] == codes(rows)
    with pytest.raises(RunTableError, match="line 2"):
        read_table(path)


@settings(max_examples=10, deadline=None, suppress_health_check=QUIET)
@given(table=tables())
def test_parquet(tmp_path: Path, table: pd.DataFrame) -> None:
    """Whatever its name."""
    path = tmp_path / "runs.csv"
    table.to_parquet(path)

    assert rows_of(understood(table)) == rows_of(understood(path))


def test_tables_in_memory() -> None:
    """Records, columns, a table of Arrow, columns that are the index: as the DataFrame."""
    expected = rows_of(understood(PLAIN))

    assert expected == rows_of(understood(PLAIN.to_dict("records")))
    assert expected == rows_of(understood(PLAIN.to_dict("list")))
    assert expected == rows_of(understood(pa.Table.from_pandas(PLAIN)))
    assert expected == rows_of(understood(PLAIN.set_index(["width", "lr"])))


@pytest.mark.parametrize(
    "text",
    [
        "# width lr loss\n64 1e-3 3\n64 4e-3 2.8\n128 1e-3 2.8\n",
        "# made by sweep.py\n# 2026\nwidth,lr,loss\n64,1e-3,3\n64,4e-3,2.8\n128,1e-3,2.8\n",
        "| width | lr | loss |\n|---|---|---|\n| 64 | 1e-3 | 3 |\n| 64 | 4e-3 | 2.8 |\n|128|1e-3|2.8|\n",
        "width,lr,loss,\n64,1e-3,3,\n64,4e-3,2.8,\n128,1e-3,2.8,\n",
        "width, lr, loss\n 64, 1e-3, 3\n64 , 4e-3, 2.8\n\n128, 1e-3, 2.8\n\n",
        '"width"\t"lr"\t"loss"\n"64"\t"1e-3"\t"3"\n64\t4e-3\t2.8\n128\t1e-3\t2.8\n',
        "  width     lr  loss\n     64  1e-3   3.0\n     64  4e-3   2.8\n    128  1e-3   2.8\n",
    ],
)
def test_texts_by_hand(text: str, tmp_path: Path) -> None:
    """Comments, tables of Markdown, trailing separators, spaces, quotes."""
    path = tmp_path / "runs.txt"
    path.write_text(text)

    rows = understood(path)

    assert [(64.0, 1e-3, 3.0), (64.0, 4e-3, 2.8), (128.0, 1e-3, 2.8)] == [
        row[:2] + row[3:] for row in rows_of(rows)
    ]


def test_copies_are_seen_behind_a_column_that_counts_rows(tmp_path: Path) -> None:
    """As pandas writes its index: an unnamed column that tells nothing."""
    pd.concat([PLAIN, PLAIN], ignore_index=True).to_csv(tmp_path / "runs.csv")

    rows = understood(tmp_path / "runs.csv")

    assert 6 == len(rows.runs)
    assert ["rows_copied"] == codes(rows)


REFUSED: dict[str, tuple[bytes, str]] = {
    "Excel": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "Excel"),
    "pickle": (b"\x80\x05\x95", "pickle"),
    "HDF5": (b"\x89HDF\r\n", "HDF5"),
    "bytes": (b"a,b\n\x00\x00\x01", "bytes"),
    "empty": (b"", "empty"),
    "ragged": (b"a,b\n1,2,3\n", "row 1"),
    "quotes": (b'a,b\n"1,2\n', "runs"),
    "broken gzip": (gzip.compress(b"a,b\n1,2\n")[:-6], "runs"),
    "broken zip": (zipped(b"a,b\n1,2\n")[:40], "runs"),
    "JSON that is no table": (b"[1, 2, 3]", "no table"),
    "broken JSON": (b'{"a": [1, 2', "line 1"),
    "unequal columns": (b'{"a": [1, 2], "b": [1]}', "runs"),
}


@pytest.mark.parametrize(("content", "named"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_table_is_refused_in_one_sentence(content: bytes, named: str, tmp_path: Path) -> None:
    """Naming the file and what it is."""
    path = tmp_path / "runs"
    path.write_bytes(content)

    with pytest.raises(RunTableError, match=named) as caught:
        read_table(path)

    assert str(path) in str(caught.value)
    assert 1 == len(str(caught.value).splitlines())


def test_archives_of_several_files_and_folders_are_refused(tmp_path: Path) -> None:
    """Nobody knows which one is meant."""
    with zipfile.ZipFile(tmp_path / "runs.zip", "w") as archive:
        archive.writestr("a.csv", "a\n1\n")
        archive.writestr("b.csv", "a\n1\n")

    with pytest.raises(RunTableError, match="2 files"):
        read_table(tmp_path / "runs.zip")
    with pytest.raises(RunTableError, match="folder"):
        read_table(tmp_path)


@pytest.mark.parametrize("name", ["runs.parquet", "runs.csv.zst"])
def test_a_missing_library_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to install."""
    path = tmp_path / name
    if name.endswith("parquet"):
        PLAIN.to_parquet(path)
    else:
        path.write_bytes(zstd(PLAIN.to_csv(index=False).encode()))

    def without(module: str, *args: Any, **kwargs: Any) -> Any:
        if module.partition(".")[0] == "pyarrow":
            raise ImportError(module)
        return real(module, *args, **kwargs)

    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setattr(pd, "read_parquet", lambda *_, **__: without("pyarrow"))
    with pytest.raises(RunTableError, match="pip install pyarrow"):
        read_table(path)


def test_the_file_of_a_storage_is_its_storage(tmp_path: Path) -> None:
    """An SQLite database or a journal of Optuna's, named by its path."""
    journal = JournalStorage(JournalFileBackend(str(tmp_path / "study.log")))
    for storage in (f"sqlite:///{tmp_path / 'study.db'}", journal):
        study = optuna.create_study(storage=storage)
        study.optimize(lambda trial: 1 + trial.suggest_float("lr", 1e-4, 1e-1, log=True), n_trials=3)

    assert [3, 3] == [len(read_table(tmp_path / name)) for name in ("study.db", "study.log")]


def test_the_command_reads_them_too(tmp_path: Path) -> None:
    """From the command line, with columns guessed: up to the question for the target."""
    path = tmp_path / "runs.csv.gz"
    path.write_bytes(gzip.compress(PLAIN.to_csv(index=False, sep=";").encode()))

    result = CliRunner().invoke(app, ["suggest", "--runs", str(path)])

    assert 2 == result.exit_code
    assert "--target width=" in result.stderr


MARKDOWN = "| width | lr | loss |\n|:---|---:|:-:|\n"


@pytest.mark.parametrize(
    "text",
    [
        "sep=;\n" + PLAIN.to_csv(index=False, sep=";"),
        MARKDOWN + "".join(f"| {w} | {lr} | {loss} |\n" for w, lr, loss in PLAIN.to_numpy()),
        "+--+--+--+\n" + PLAIN.to_csv(index=False, sep="|") + "+--+--+--+\n(6 rows)\n",
        PLAIN.to_csv(index=False).replace("128", "# the second half\n128", 1),
    ],
    ids=["excel", "markdown", "database", "comment"],
)
def test_lines_around_the_rows(tmp_path: Path, text: str) -> None:
    """For Excel, of Markdown, as databases print them, and comments."""
    (tmp_path / "runs.txt").write_text(text)

    assert rows_of(understood(PLAIN)) == rows_of(understood(tmp_path / "runs.txt"))


def test_an_archive_that_holds_other_files_too(tmp_path: Path) -> None:
    """A read-me, and a file that starts with a point."""
    with zipfile.ZipFile(tmp_path / "runs.zip", "w") as archive:
        archive.writestr("README.md", "Our runs.")
        archive.writestr("data/.DS_Store", b"\x00")
        archive.writestr("data/runs.csv", PLAIN.to_csv(index=False))

    assert rows_of(understood(PLAIN)) == rows_of(understood(tmp_path / "runs.zip"))


def test_paths_as_people_write_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a tilde, and as an address of a file; one of a server is refused."""
    monkeypatch.setenv("HOME", str(tmp_path))
    PLAIN.to_csv(tmp_path / "runs.csv", index=False)

    for path in ("~/runs.csv", f"file://{tmp_path}/runs.csv"):
        assert rows_of(understood(PLAIN)) == rows_of(understood(path))
    for address in ("https://example.org/runs.csv", "s3://bucket/runs.csv"):
        with pytest.raises(RunTableError):
            understood(address)


def as_settings(table: pd.DataFrame) -> list[dict[str, Any]]:
    """What trackers hand out: settings and results in dictionaries."""
    return [
        {"config": {"width": row["width"], "optimizer": {"lr": row["lr"]}}, "summary": {"loss": row["loss"]}}
        for row in table.to_dict("records")
    ]


@pytest.mark.parametrize("as_text", [str, json.dumps, lambda cell: cell])
def test_cells_that_hold_dictionaries(as_text: Callable[[Any], Any]) -> None:
    """As objects, and as the texts that `to_csv` makes of them; nan in one is a number that was none."""
    records = as_settings(PLAIN)
    records[0]["summary"]["loss"] = float("nan")
    table = pd.DataFrame([{key: as_text(value) for key, value in record.items()} for record in records])

    rows = understood(table, axes=["config.width"], hps={"config.optimizer.lr": "log"}, loss="summary.loss")

    assert 5 == rows.counts["finished"]
    assert (1 if as_text is str else 0) == rows.counts.get("diverged", 0)


def test_what_mlflow_answers(tmp_path: Path) -> None:
    """Parameters and metrics in lists of keys and values."""
    runs = [
        {
            "info": {"status": "FINISHED"},
            "data": {
                "params": [{"key": name, "value": str(row[name])} for name in ("width", "lr")],
                "metrics": [{"key": "loss", "value": row["loss"], "step": 9}],
            },
        }
        for row in PLAIN.to_dict("records")
    ]
    (tmp_path / "runs.json").write_text(json.dumps({"next_page_token": "x", "runs": runs}))

    rows = understood(
        tmp_path / "runs.json",
        axes=["data.params.width"],
        hps={"data.params.lr": "log"},
        loss="data.metrics.loss",
    )

    assert rows_of(understood(PLAIN)) == rows_of(rows)
