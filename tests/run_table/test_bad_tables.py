"""Tables as they come: whatever is wrong is said in one sentence, and never a traceback."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from source_studies import ASK, past_runs
from typer.testing import CliRunner

import transfer_bo as tb
from transfer_bo.cli import app
from transfer_bo.errors import (
    NoRunsError,
    PriorError,
    RunTableError,
    ScaleError,
    SearchSpaceError,
    StorageError,
    TransferError,
)
from transfer_bo.records import Outcome
from transfer_bo.run_table.cleaning import MAX_ROWS, read_rows
from transfer_bo.run_table.columns import Columns, guess_columns
from transfer_bo.run_table.fit import FitOptions, check_target, project
from transfer_bo.run_table.read import read_table

COLUMNS = Columns(("n_params", "tokens"), {"lr": "log", "beta2": "one_minus"}, "loss")


def changed(**values: Any) -> pd.DataFrame:
    """Past runs with the first row's values replaced."""
    table = past_runs(2).astype(object)
    for name, value in values.items():
        table.loc[0, name] = value
    return table


@pytest.mark.parametrize(
    ("table", "ask", "error", "named"),
    [
        (pd.DataFrame(), {}, RunTableError, []),
        (past_runs(2)[:0], {}, RunTableError, []),
        (past_runs(2)[:1], {}, SearchSpaceError, ["lr = ", "beta2 = "]),
        (past_runs(2).drop(columns="tokens"), {}, RunTableError, ["'tokens'", "n_params"]),
        (past_runs(2).drop(columns="loss"), {}, RunTableError, ["'loss'"]),
        (changed(lr="fast"), {}, RunTableError, ["'lr'", "'fast'", "row 1"]),
        (changed(loss="2.5 nats"), {}, RunTableError, ["'loss'", "'2.5 nats'"]),
        (past_runs(2).assign(lr=0.0), {}, SearchSpaceError, ["'lr'", "0 has no logarithm"]),
        (past_runs(2).assign(lr=-1e-3), {}, SearchSpaceError, ["'lr'", "-0.001"]),
        (past_runs(2).assign(beta2=1.0), {}, SearchSpaceError, ["'beta2'", "1 has"]),
        (past_runs(2).assign(lr=math.inf), {}, SearchSpaceError, ["'lr'", "inf"]),
        (changed(tokens=-1), {}, RunTableError, ["'tokens' is -1"]),
        (past_runs(2).assign(status="melted"), {"status": "status"}, NoRunsError, ["'melted'"]),
        (past_runs(2).assign(loss=np.nan), {}, NoRunsError, ["12 rows have no loss"]),
        (past_runs(2).assign(lr=None), {}, NoRunsError, ["lr", "12"]),
        (past_runs(2).assign(lr=0.01, beta2=0.9), {}, SearchSpaceError, ["lr = 0.01", "beta2 = 0.9"]),
        (past_runs(2), {"diverged_above": 0.1}, NoRunsError, ["12", "0.1"]),
        (past_runs(2), {"diverged_above": math.nan}, RunTableError, ["diverged_above is nan"]),
        (past_runs(2), {"study": "x"}, RunTableError, ["'x'"]),
        (past_runs(2).assign(lr=[[1]] * 12), {"hps": {"lr": "categorical"}}, SearchSpaceError, ["'lr'"]),
        (past_runs(20), {"hps": {"lr": "categorical"}}, SearchSpaceError, ["'lr'", "120"]),
        (pd.concat([past_runs(2), 2 * past_runs(2)[["lr"]]], axis=1), {}, RunTableError, ["'lr'"]),
        (past_runs(2), {"axes": []}, RunTableError, ["axes="]),
        (past_runs(2), {"hps": {}}, SearchSpaceError, ["hps="]),
        (past_runs(2), {"hps": {"lr": "ln"}}, SearchSpaceError, ["'lr'", "'ln'"]),
        (past_runs(2), {"hps": {"tokens": "log"}}, RunTableError, ["'tokens'"]),
        (past_runs(2), {"target": {"n_params": 1e9}}, ScaleError, ["tokens"]),
        (past_runs(2), {"target": {"n_params": 1e9, "tokens": 1e9, "width": 2}}, ScaleError, ["width"]),
        (past_runs(2), {"target": {"n_params": 1e9, "tokens": -1}}, TransferError, ["-1"]),
        (past_runs(2), {"target": 1e9}, ScaleError, ["1000000000.0"]),
        (past_runs(2), {"coordinates": "polar"}, ScaleError, ["'polar'"]),
        (past_runs(2), {"drift_prior": {"wd": {"tokens": (0, 1)}}}, PriorError, ["'wd'"]),
        (past_runs(2), {"drift_prior": {"lr": {"depth": (0, 1)}}}, TransferError, ["'depth'"]),
        (past_runs(2), {"drift_prior": {"lr": {"tokens": (0, 0)}}}, TransferError, ["(0, 0)"]),
        ([1, 2], {}, RunTableError, ["list"]),
        ("/nowhere/runs.csv", {}, RunTableError, ["/nowhere/runs.csv"]),
        ("sqlite:////nowhere/x.db", {}, StorageError, ["/nowhere/x.db"]),
        ("nosuch://x", {}, StorageError, ["nosuch"]),
    ],
)
def test_bad_input_is_refused_in_one_sentence(
    table: Any, ask: dict[str, Any], error: type[TransferError], named: list[str]
) -> None:
    """The error has the type of its cause and names the place and the value."""
    with pytest.raises(error) as caught:
        tb.suggest_from_runs(table, **ASK | ask)

    assert error is TransferError or error is type(caught.value)
    for name in named:
        assert name in str(caught.value)
    assert 1 == len(str(caught.value).splitlines())


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\x00\xff\xfe\x01", b'a,"b\n1,2', b"PAR1"])
def test_files_that_are_no_tables(tmp_path: Path, content: bytes) -> None:
    """Empty and broken files, as CSV and as Parquet, end with one sentence and exit code 2."""
    for suffix in (".csv", ".parquet"):
        path = tmp_path / f"runs{suffix}"
        path.write_bytes(content)
        result = CliRunner().invoke(app, ["suggest", "--runs", str(path), "--target", "tokens=1e9"])

        assert 2 == result.exit_code
        assert 1 == len(result.stderr.strip().splitlines())
        assert not isinstance(result.exception, ValueError)


def test_a_far_target_asks_for_its_unit() -> None:
    """A thousand times outside is answered, with the question whether the units agree."""
    rows = read_rows(past_runs(2), COLUMNS, maximize=False, seed=0)

    check_target(tb.Scale(n_params=1e9, tokens=8e12), rows, COLUMNS.axes)

    assert ["tokens"] == [note.details["column"] for note in rows.notes if note.code == "unit_of_target"]


def test_one_scale_is_answered_from_the_prior() -> None:
    """Runs at one scale only have an answer, which is said to rest on the prior."""
    table = past_runs(8)
    table = table[(table["n_params"] == 1e8) & (table["tokens"] == 1e9)]
    suggestion = tb.suggest_from_runs(table, **ASK)
    low, high = suggestion.interval()["lr"]

    assert high / low > 1.5
    assert any("All finished runs have n_params = 1e+08" in warning for warning in suggestion.warnings)


def test_a_million_rows() -> None:
    """A million rows are thinned in seconds, and each scale keeps its best rows."""
    rng = np.random.default_rng(0)
    n = 1_000_000
    table = pd.DataFrame(
        {
            "n_params": rng.choice([1e8, 2e8, 4e8], n),
            "tokens": rng.choice([1e9, 4e9], n),
            "lr": 2.0 ** rng.uniform(-11, -6, n),
            "beta2": 1 - 2.0 ** rng.uniform(-9, -3, n),
        }
    )
    table["loss"] = 2.5 * np.exp(0.02 * (np.log2(table["lr"]) + 8) ** 2) * (table["n_params"] / 1e8) ** -0.1
    table.loc[::100, "loss"] = np.inf
    rows = read_rows(table, COLUMNS, maximize=False, seed=0)
    finished = [run for run in rows.runs if run.outcome is Outcome.FINISHED]
    best = table.sort_values("loss").groupby(["n_params", "tokens"])["loss"].head(20)

    assert MAX_ROWS - 12 <= len(finished) <= MAX_ROWS
    assert len(rows.runs) <= 2 * MAX_ROWS
    assert {float(v) for v in best} <= {run.loss for run in finished}


CELL = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.floats(1e-6, 10),
    st.integers(-3, 10**12),
    st.sampled_from(["", "nan", "inf", "x", "1e-3", " 0.5 ", None, True, "finished", "diverged"]),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    rows=st.lists(st.lists(CELL, min_size=5, max_size=5), max_size=8),
    kinds=st.lists(st.sampled_from(["log", "linear", "one_minus", "categorical"]), min_size=2, max_size=2),
    sane=st.booleans(),
)
def test_fuzzed_tables(rows: list[list[Any]], kinds: list[str], sane: bool) -> None:
    """Any table is either refused in one line or becomes runs with finite losses inside their dimensions."""
    names = ["n_params", "tokens", "lr", "beta2", "loss"]
    table = pd.DataFrame(rows, columns=names, dtype=object)
    if sane:  # mostly right tables, so that not all are refused at once
        table = pd.concat([past_runs(1).astype(object), table[["loss"]]], ignore_index=True)
    columns = Columns(("n_params", "tokens"), dict(zip(["lr", "beta2"], kinds, strict=True)), "loss")
    said, found = "", None
    try:
        found = read_rows(table, columns, maximize=False, seed=0) if len(table) else None
    except tb.TransferError as error:
        said = str(error)

    assert 1 >= len(said.splitlines())
    if found is None:
        return
    boxes = {dim.name: dim for dim in found.dimensions}
    assert boxes
    for run in found.runs:
        assert (run.loss is not None and math.isfinite(run.loss)) == (run.outcome is Outcome.FINISHED)
        for name, value in run.params.items():
            box = boxes[name]
            assert value in box.choices if box.transform == "categorical" else box.low <= value <= box.high


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    losses=st.lists(st.floats(1e-3, 1e3), min_size=4, max_size=8),
    span=st.floats(1.01, 1e6),
    seed=st.integers(0, 99),
)
def test_fuzzed_fits(losses: list[float], span: float, seed: int) -> None:
    """Whatever the losses, the answer is finite, positive and inside its box."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"loss": losses, "lr": 1e-3 * span ** rng.uniform(size=len(losses))})
    table["n_params"] = rng.choice([1e7, 1e8], len(losses))
    rows = read_rows(table, Columns(("n_params",), {"lr": "log"}, "loss"), maximize=False, seed=0)
    suggestion = project(rows.runs, rows.dimensions, tb.Scale(n_params=1e9), FitOptions()).suggest()
    low, high = suggestion.interval()["lr"]

    assert 0 < low <= high < math.inf
    assert 0 < suggestion.params["lr"] < math.inf
    assert math.isfinite(suggestion.predicted_loss.mean)


def test_guesses_by_name() -> None:
    """The usual names are recognised; of two forms of one HP one is taken, in tokens for a batch."""
    table = past_runs(2).assign(d_model=64, lr_grid=0.1, batch_seqs=range(12), batch_tokens=range(12))
    columns = guess_columns(table)

    assert ("n_params", "tokens") == columns.axes
    assert {"lr": "log", "beta2": "one_minus", "batch_tokens": "log"} == dict(columns.hps)
    assert "loss" == columns.loss
    shapes = guess_columns(table.drop(columns=["n_params", "tokens"]).assign(n_layers=2, steps=9))
    assert ("d_model", "n_layers", "steps") == shapes.axes
    with pytest.raises(RunTableError):
        guess_columns(table[["lr"]])


def test_the_command_shows_its_guesses_and_takes_flags(tmp_path: Path) -> None:
    """Guesses go to standard error, JSON alone to standard output; flags and guesses give the same answer."""
    path = tmp_path / "runs.csv"
    past_runs(3).to_csv(path, index=False)
    common = ["suggest", "--runs", str(path), "--target", "n_params=1.6e9", "--target", "tokens=1.6e10"]
    flags = "--axis n_params --axis tokens --hp lr:log --hp beta2:one_minus --loss loss"
    guessed = CliRunner().invoke(app, [*common, "--json", "--no-held-out"])
    said = CliRunner().invoke(app, [*common, *flags.split(), "--json", "--no-held-out"])
    shown = CliRunner().invoke(app, common)

    assert flags in guessed.stderr
    assert "" == said.stderr
    assert json.loads(said.stdout) == json.loads(guessed.stdout)
    for words in ("Drift of the optimum", "What settings should cost", "Published laws", "left out"):
        assert words in shown.stdout


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        ([], "--target n_params=..."),
        (["--target", "tokens"], "--target tokens"),
        (["--target", "tokens=1e9", "--hp", "lr"], "--hp lr:log"),
        (["--target", "tokens=1e9", "--drift", "lr=1"], "--drift lr=1"),
        (["--target", "tokens=1e9", "--target", "tokens=2e9"], "--target is given twice for 'tokens'"),
        (["--target", "tokens=1e9", "--hp", "lr:log", "--hp", "lr:linear"], "--hp is given twice for 'lr'"),
        (["study.toml"], "--runs and a study"),
    ],
)
def test_flags_that_say_too_little(tmp_path: Path, flags: list[str], word: str) -> None:
    """A flag without its value or kind is shown as it should be written."""
    path = tmp_path / "runs.csv"
    past_runs(1).to_csv(path, index=False)
    result = CliRunner().invoke(app, ["suggest", "--runs", str(path), *flags])

    assert 2 == result.exit_code
    assert word in result.stderr


def test_a_line_break_in_a_column_name_does_not_break_the_sentence(tmp_path: Path) -> None:
    """A header whose quoted name goes over two lines: still one line of error."""
    path = tmp_path / "runs.csv"
    path.write_text('"a\nb",c\n1,2\n', encoding="utf-8")
    result = CliRunner().invoke(app, ["suggest", "--runs", str(path), "--target=n_params=1e9"])

    assert 2 == result.exit_code
    assert 1 == len(result.stderr.splitlines())


def test_a_table_as_spreadsheets_write_it(tmp_path: Path) -> None:
    """Semicolons between cells and a byte order mark are read; the losses are those of the plain file."""
    table = past_runs(2)
    path = tmp_path / "runs.csv"
    path.write_text("\ufeff" + table.to_csv(index=False, sep=";"), encoding="utf-8")
    read = read_table(str(path))

    assert list(table.columns) == list(read.columns)
    assert table["loss"].tolist() == pytest.approx([float(value) for value in read["loss"]])


def test_what_is_odd_is_remarked() -> None:
    """Losses that are all alike, or not positive, are fitted and said to be so."""
    same = read_rows(past_runs(2).assign(loss=2.0), COLUMNS, maximize=False, seed=0)
    table = past_runs(2)
    negative = read_rows(table.assign(loss=-table["loss"]), COLUMNS, maximize=False, seed=0)

    assert ["loss_constant"] == [note.code for note in same.notes]
    assert ["loss_not_positive"] == [note.code for note in negative.notes]


TEXT = st.sampled_from(
    [
        "",
        "nan",
        "inf",
        "-1",
        "0",
        "1",
        "1e-3",
        "0.5",
        "2.5",
        "3",
        "1e9",
        "4e9",
        "4B",
        "x",
        '"',
        "1,5",
        "\x00",
        "é",
    ]
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.lists(TEXT, min_size=3, max_size=6).map(",".join), max_size=6),
    header=st.sampled_from(
        ["n_params,tokens,lr,loss", "N;D;lr;loss", "lr,loss", "", "n_params,n_params,lr,loss"]
    ),
    command=st.sampled_from(["suggest", "diagnose"]),
    flags=st.lists(
        st.sampled_from(["--axis=n_params", "--hp=lr:log", "--hp=lr", "--loss=loss", "--maximize"]),
        unique=True,
    ),
    target=st.sampled_from(["n_params=1e9", "tokens=nan", "n_params", "tokens=1e400"]),
)
def test_fuzzed_files_and_flags(
    tmp_path: Path, rows: list[str], header: str, command: str, flags: list[str], target: str
) -> None:
    """Whatever stands in a file and on the command line: an answer, or one sentence and exit code 2."""
    path = tmp_path / "runs.csv"
    path.write_bytes("\n".join([header, *rows]).encode())
    options = [f"--target={target}", "--no-held-out"] if command == "suggest" else []
    result = CliRunner().invoke(app, [command, "--runs", str(path), *flags, *options])
    said = [line for line in result.stderr.splitlines() if not line.startswith("Columns guessed")]

    assert result.exit_code in (0, 2), (result.exception, result.stderr)
    assert (1 if result.exit_code else 0) == len(said), said


@pytest.mark.parametrize(
    ("axes", "hps", "value"), [("n_params", {"lr": "log"}, "'n_params'"), (["n_params"], ["lr"], r"\['lr'\]")]
)
def test_a_wrong_type_of_axes_or_hps_is_named(axes: Any, hps: Any, value: str) -> None:
    """A string is not read letter by letter, a list of HPs lacks their kinds."""
    with pytest.raises(TransferError, match=value):
        tb.suggest_from_runs("runs.csv", axes, hps, target={"n_params": 1e9})
