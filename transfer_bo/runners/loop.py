"""The former place of `transfer_bo.runners.worker_loop`; it goes away in the next release."""

from __future__ import annotations

from typing import Any

from transfer_bo.deprecation import warn_renamed

__all__: list[str] = []

_FIRST = {"first": "first_params"}
"""Arguments of `work`: former name -> present name."""

_OPTIONS = {
    "owner": "owner",
    "stopping": "should_stop",
    "after": "on_end",
    "has_heartbeat": "has_heartbeat",
    "beat": "beat",
    "grace": "grace",
    "at_most": "max_trials",
}
"""Former arguments of `work` -> fields of `WorkerOptions`."""


def _work(study: Any, objective: Any, **arguments: Any) -> int:
    """`worker_loop.work` with its former arguments."""
    from transfer_bo.runners.worker_loop import WorkerOptions, work

    options = {_OPTIONS[name]: arguments.pop(name) for name in list(arguments) if name in _OPTIONS}
    renamed = {_FIRST.get(name, name): value for name, value in arguments.items()}
    return work(study, objective, **renamed, options=WorkerOptions(**options))


def __getattr__(name: str) -> Any:
    if name != "work":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warn_renamed("transfer_bo.runners.loop.work", "transfer_bo.runners.worker_loop.work")
    return _work
