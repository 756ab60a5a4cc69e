"""Old names keep working, with a warning."""

import importlib
import sys

import pytest

from transfer_bo.deprecation import MOVED_MODULES, renamed_argument


@renamed_argument("maximise", "maximize")
def best(values: list[float], *, maximize: bool = False) -> float:
    """The best of some values."""
    return max(values) if maximize else min(values)


def test_the_old_name_of_an_argument_works_and_warns() -> None:
    """The value given under the old name reaches the function; the warning points at the caller."""
    with pytest.warns(DeprecationWarning, match="maximise") as caught:
        found = best([1.0, 2.0], maximise=True)  # type: ignore[call-arg]

    assert 2.0 == found
    assert [__file__] == [warning.filename for warning in caught]


def test_the_new_name_does_not_warn() -> None:
    """Warnings are errors in this suite, so a call with the new name is silent."""
    assert 2.0 == best([1.0, 2.0], maximize=True)


def test_both_names_at_once_are_refused() -> None:
    """Two values for one argument are a mistake, as in any call."""
    with pytest.raises(TypeError):
        best([1.0], maximize=True, maximise=False)  # type: ignore[call-arg]


@pytest.mark.parametrize("old", MOVED_MODULES)
def test_a_moved_module_is_found_under_its_old_name(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing it warns at the import, and gives the same objects as the module of today."""
    module = f"transfer_bo.{old}"
    monkeypatch.delitem(sys.modules, module, raising=False)
    new = importlib.import_module(f"transfer_bo.{MOVED_MODULES[old]}")

    with pytest.warns(DeprecationWarning, match=MOVED_MODULES[old]) as caught:
        exec(f"import {module}")

    assert ["<string>"] == [warning.filename for warning in caught]
    for name in new.__all__:
        assert getattr(new, name) is getattr(sys.modules[module], name)
    monkeypatch.delitem(sys.modules, module)


def test_an_unknown_module_is_still_not_found() -> None:
    """Only the names in the table are found."""
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("transfer_bo.runners.commands")
