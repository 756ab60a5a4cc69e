"""How a trial ended, as a type that the surrogate can use; the decorator `objective` finds it out.

Optuna alone cannot distinguish endings: nan and exceptions both become FAIL with no reason kept, inf becomes
COMPLETE, and an exception ends `study.optimize`. Here every ending is written to a trial attribute, and only
Ctrl-C and a sequence of errors without any other outcome end the study.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import time
import traceback
from collections.abc import Callable
from typing import Any

import optuna

from transfer_bo.attributes import ERROR_ATTR, OUTCOME_ATTR, SECONDS_ATTR
from transfer_bo.errors import Diverged, Preempted, TransferError, WorkerError
from transfer_bo.records import Outcome
from transfer_bo.secrets import hide_secret_values

__all__ = ["Outcome", "is_out_of_memory", "objective"]

logger = logging.getLogger(__name__)

MAX_ERRORS_IN_A_ROW = 5
"""So many errors with no other outcome in between are a bug in the objective, not bad HPs."""

MAX_ERROR_LENGTH = 2000
"""Characters of an exception's text that are kept with its trial."""

MAX_SHOWN = 60
"""Characters of a value that is no loss which an error shows."""

_MEMORY_WORDS = ("out of memory", "not enough memory", "allocate memory")
"""Parts of a plain RuntimeError's message when memory runs out: on MPS, old CUDA builds, and the CPU."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a device or on the host."""
    if not isinstance(error, RuntimeError):
        return isinstance(error, MemoryError)
    message = str(error).lower()
    # By name, so that torch need not be imported.
    return type(error).__name__ == "OutOfMemoryError" or any(words in message for words in _MEMORY_WORDS)


def _as_loss(returned: Any) -> float:
    """What an objective returned as a number; arrays and tensors with one element are one.

    Raises:
        TypeError: for anything else, such as None where a `return` was forgotten.
    """
    if math.prod(getattr(returned, "shape", (0,))) == 1 and hasattr(returned, "item"):
        returned = returned.item()
    try:
        return float(returned)
    except (TypeError, ValueError):
        shown = repr(returned)[:MAX_SHOWN]
        raise TypeError(f"the objective returned {shown}; return the loss, a number") from None


def objective(function: Callable[[optuna.Trial], float]) -> Callable[[optuna.Trial], float]:
    """Turn nan, inf, out-of-memory and exceptions of an objective into typed outcomes.

    The wrapped objective never raises for a bad trial: it records the outcome as a trial attribute and
    returns nan, so that Optuna marks the trial FAIL and `study.optimize` goes on. `TrialPruned` passes
    through. A `KeyboardInterrupt` or `SystemExit` is recorded as preempted, which is not informative;
    `Preempted` passes through without a record, because the trial may go on elsewhere.

    Args:
        function: Trains with the HPs that it asks of the trial; returns the loss.

    Returns:
        The wrapped objective, for `study.optimize` and `transfer_bo.verify`. It raises `WorkerError` after 5
        trials in a row that ended with an unexpected exception; the last exception is its cause.
    """
    errors_in_a_row = 0

    @functools.wraps(function)
    def wrapped(trial: optuna.Trial) -> float:
        nonlocal errors_in_a_row
        started = time.monotonic()
        error: BaseException | None = None
        outcome: Outcome | None = Outcome.ERROR
        value = math.nan

        try:
            value = _as_loss(function(trial))
            outcome = Outcome.FINISHED if math.isfinite(value) else Outcome.DIVERGED
        except optuna.TrialPruned:
            outcome = Outcome.PRUNED
            raise
        except Preempted:
            outcome = None  # it may go on: it has not ended
            raise
        except (KeyboardInterrupt, SystemExit):
            outcome = Outcome.PREEMPTED
            raise
        except TransferError:
            raise  # the sampler's or the parametrization's error for the user: not about these HPs
        except Diverged as caught:
            error, outcome = caught, Outcome.DIVERGED
        except Exception as caught:
            error = caught
            outcome = Outcome.OUT_OF_MEMORY if is_out_of_memory(caught) else Outcome.ERROR
        finally:
            if outcome is not None:
                seconds = trial.user_attrs.get(SECONDS_ATTR, 0.0) + time.monotonic() - started
                trial.set_user_attr(SECONDS_ATTR, seconds)
                trial.set_user_attr(OUTCOME_ATTR, str(outcome))
            if error is not None:
                text = hide_secret_values(f"{type(error).__name__}: {error}", os.environ)
                trial.set_user_attr(ERROR_ATTR, text[:MAX_ERROR_LENGTH])

        errors_in_a_row = errors_in_a_row + 1 if outcome is Outcome.ERROR else 0
        if outcome is Outcome.ERROR:
            assert error is not None
            formatted = hide_secret_values("".join(traceback.format_exception(error)), os.environ)
            logger.warning("Trial %d failed: %s", trial.number, formatted)
            if errors_in_a_row >= MAX_ERRORS_IN_A_ROW:
                raise WorkerError(
                    f"The objective failed {errors_in_a_row} times in a row, last with "
                    f"{type(error).__name__}: {error}. Fix it and run again; finished trials are kept."
                ) from error
        return value if outcome is Outcome.FINISHED else math.nan

    return wrapped
