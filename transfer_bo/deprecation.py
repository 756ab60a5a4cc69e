"""Old names that keep working for one release, with a DeprecationWarning."""

from __future__ import annotations

import functools
import importlib
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import ParamSpec, TypeVar

__all__ = ["MOVED_MODULES", "find_moved_modules", "renamed_argument", "warn_renamed"]

P = ParamSpec("P")
R = TypeVar("R")


def warn_renamed(old: str, new: str, stacklevel: int = 3) -> None:
    """Warn that a name has a new one.

    Args:
        old: the name that was used, as the user wrote it.
        new: the name to use.
        stacklevel: as of `warnings.warn`; 3 names the caller of the function that calls this one.
    """
    message = f"{old} is now called {new}; the old name goes away in the next release."
    warnings.warn(message, DeprecationWarning, stacklevel=stacklevel)


def renamed_argument(old: str, new: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function take a keyword argument under its old name too.

    Example:
        >>> @renamed_argument("maximise", "maximize")
        ... def best(values, *, maximize=False): ...

    Args:
        old: the former name.
        new: the present name, an argument of the function.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
            if old in kwargs:
                if new in kwargs:
                    raise TypeError(f"{function.__name__}() got both {new!r} and its old name {old!r}")
                warn_renamed(f"{old}=", f"{new}=")
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return wrapped

    return decorate


MOVED_MODULES = {
    "history": "records",
    "past": "run_table.warm_start",
    "plots": "display.figures",
    "reference_laws": "run_table.published_laws",
    "runners.command": "runners.external_program",
    "runners.outcomes": "runners.objective",
    "runners.pruner": "search.pruner",
    "runners.storage": "store.open_study",
    "runners.verify": "verification",
    "surrogate.dimension": "dimension",
}
"""Modules that programs may import under the name they had in version 0.1.0, and what they are called now."""

_PACKAGE = "transfer_bo."


class _MovedModuleFinder(MetaPathFinder, Loader):
    """Finds a module of `MOVED_MODULES` under its old name, as a copy of its namespace."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a spec for an old name; Python asks only when no file has that name."""
        is_moved = fullname.startswith(_PACKAGE) and fullname.removeprefix(_PACKAGE) in MOVED_MODULES
        return ModuleSpec(fullname, self) if is_moved else None

    def create_module(self, spec: ModuleSpec) -> None:
        """Leave the module to Python."""

    def exec_module(self, module: ModuleType) -> None:
        """Fill the module with the names that the moved one has now."""
        new = _PACKAGE + MOVED_MODULES[module.__name__.removeprefix(_PACKAGE)]
        warn_renamed(f"The module {module.__name__}", new)

        names = vars(importlib.import_module(new))
        vars(module).update({name: value for name, value in names.items() if not name.startswith("__")})


def find_moved_modules() -> None:
    """Let `import` find modules under their old names, with a DeprecationWarning."""
    if not any(isinstance(finder, _MovedModuleFinder) for finder in sys.meta_path):
        sys.meta_path.append(_MovedModuleFinder())
