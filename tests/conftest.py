"""Fixtures that several test modules share."""

from __future__ import annotations

import gc
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import jaxtyping
import pytest

# In tests, arguments and results of these packages are checked against their annotations, shapes included.
# The hook only reaches modules that are imported after it.
jaxtyping.install_import_hook(["transfer_bo.surrogate", "transfer_bo.search"], "type_checks.check")

CHECKED = {"surrogate", "search"}
"""Folders whose tests check types. Elsewhere that would nearly double the time of a fit."""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Switch the checks of types on or off."""
    jaxtyping.config.update("jaxtyping_disable", item.path.parent.name not in CHECKED)


def pytest_configure() -> None:
    """Listen to Ctrl-C again: what a shell starts in the background is deaf to it, and so are children."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


TINY = """
name = "tiny"

[data]
source = "text"
context = 16

[[ladder.rungs]]
width = 16
depth = 1
batch = 2
tokens = 512

[[ladder.rungs]]
width = 32
depth = 1
batch = 2
tokens = 512

[ladder.target]
width = 32
depth = 2
batch = 2
tokens = 1024

[space]
lr = { low = 0.001, high = 0.1, default = 0.01 }
"lr.embedding" = {}

[budget]
target_runs = 100
trials = 4
"""
"""A study file with a transformer so small that a trial takes a fraction of a second."""


@pytest.fixture
def no_open_connections() -> Iterator[None]:
    """Collects what a test leaves of PostgreSQL's connections, whose warnings would fail another test.

    pytest sets its filters of warnings one by one before each test: first all are errors, then these are not.
    A collection in between has failed a test that knew of no database.
    """
    yield
    gc.collect()


@pytest.fixture
def write_study(tmp_path: Path) -> Callable[..., Path]:
    """Writes `TINY` with a folder of text beside it; `write(("width = 16", "width = 0"))` changes a piece."""
    text = tmp_path / "text"
    text.mkdir()
    for name in "ab":
        (text / f"{name}.txt").write_text(f"{name}: the cat sat on the mat and looked at the moon. " * 40)

    def write(*replacements: tuple[str, str]) -> Path:
        content = TINY
        for old, new in replacements:
            assert old in content, old
            content = content.replace(old, new, 1)
        path = tmp_path / "tiny.toml"
        path.write_text(content)
        return path

    return write
