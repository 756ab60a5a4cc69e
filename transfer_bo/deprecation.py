"""Old names that keep working for one release, with a DeprecationWarning."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

__all__ = ["renamed_argument", "warn_renamed"]

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
