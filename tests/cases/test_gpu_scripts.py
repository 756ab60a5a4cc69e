"""The scripts for a machine with a GPU, in their tiny versions on a CPU."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from transfer_bo.training import load_text

SCRIPTS = Path(__file__).parents[2] / "studies" / "gpu"


def load(name: str) -> ModuleType:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(f"gpu_{name}", SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def text(tmp_path: Path) -> str:
    """A file of text."""
    path = tmp_path / "text.txt"
    path.write_text("the cat sat on the mat and looked at the moon. " * 2000)
    return str(path)


def test_the_checks_pass(text: str) -> None:
    """All but the one that starts processes; those that need a GPU say so."""
    script = load("check")

    class WithoutProcesses(script.Checks):  # type: ignore[name-defined, misc]
        def check_workers(self) -> dict[str, object]:
            return {"skipped": "starts processes"}

    checks = WithoutProcesses(script.TINY, load_text(text), "cpu")
    found = {each["check"]: each for each in script.run_checks(checks, 100.0)}

    skipped = {"out_of_memory", "memory", "speed", "workers", "workers_with_mps"}
    assert {"precision", "resume", "divergence"} | skipped == set(found)
    assert [] == [each for each in found.values() if "error" in each or each.get("ok") is False]
    assert skipped == {n for n in found if "skipped" in found[n]}


def test_a_check_that_fails_is_noted() -> None:
    """With its error; the next one runs, and none is begun when time is up."""
    script = load("check")

    class Two:
        def check_broken(self) -> dict[str, object]:
            raise RuntimeError("no")

        def check_fine(self) -> dict[str, object]:
            return {"ok": True}

    checks = Two()

    assert ["RuntimeError: no", None] == [each.get("error") for each in script.run_checks(checks, 10.0)]
    assert all("skipped" in each for each in script.run_checks(checks, -1.0))


@pytest.mark.slow  # a whole study, of 20 s
def test_the_full_size_study_runs(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Search, projection and verification, a line for each run; the report has tests of its own."""
    script = load("full_size")
    script.TINY["trials"] = 4
    script.report = lambda study, path: path.write_text("report")

    assert 0 == script.main(["--tiny", "--text", text, "--out", str(tmp_path / "out")])

    lines = [json.loads(line) for line in (tmp_path / "out" / "full_size.jsonl").read_text().splitlines()]
    purposes = [line["purpose"] for line in lines]
    assert ["search"] * 4 + ["search ended", "suggestion", "verify", "control", "control"] == purposes
    assert "predicted" in capsys.readouterr().out
    assert (tmp_path / "out" / "report.html").exists()
