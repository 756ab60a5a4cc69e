"""Errors that a user can act on."""

from __future__ import annotations

from transfer_bo.secrets import hide_passwords

__all__ = [
    "BudgetError",
    "DiagnosticError",
    "Diverged",
    "NoRunsError",
    "ParametrizationError",
    "Preempted",
    "PriorError",
    "RunTableError",
    "ScaleError",
    "SearchSpaceError",
    "StorageError",
    "StudyError",
    "StudyFileError",
    "TrainingError",
    "TransferError",
    "WorkerError",
]


class TransferError(ValueError):
    """Bad input: one sentence that says what is wrong, the value, and what to do.

    The command line prints the sentence and ends with exit code 2; it never shows a traceback for it.
    Passwords in addresses are never shown. Line breaks in a value it names (of a column, say) become spaces.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(" ".join(hide_passwords(sentence).splitlines()))


class ScaleError(TransferError):
    """A scale, ladder, target or axis is unusable."""


class SearchSpaceError(TransferError):
    """A hyperparameter, its kind, range, default or value is unusable."""


class PriorError(TransferError):
    """A prior of the drift is unusable."""


class BudgetError(TransferError):
    """A budget or cost is unusable, or pays for no run."""


class NoRunsError(TransferError):
    """There is no finished run, or there are too few, to answer the question."""


class RunTableError(TransferError):
    """A table of runs cannot be read, or lacks what the question needs."""


class StudyError(TransferError):
    """An Optuna study is unusable: no ladder, another direction, or other trials than its settings say."""


class StudyFileError(TransferError):
    """A study file cannot be read, or a key in it has an unusable value."""


class StorageError(TransferError):
    """The address of a storage is unusable, or what is stored there cannot be opened."""


class ParametrizationError(TransferError):
    """A model, rule or optimizer cannot be parametrized as asked."""


class TrainingError(TransferError):
    """Data, model, checkpoint or process group of a training run are unusable."""


class WorkerError(TransferError):
    """A worker process, an external program or a cluster task could not do its work."""


class DiagnosticError(TransferError):
    """A diagnostic cannot be computed from the given runs or values."""


class Diverged(RuntimeError):
    """A training run blew up (loss not finite, or far above where it started).

    Raise it from an objective under `transfer_bo.objective` to say "these HPs are unstable at this scale".
    """


class Preempted(BaseException):
    """A run was stopped from outside before its end: it says nothing about its HPs and may go on elsewhere.

    No `Exception`, like `KeyboardInterrupt`: an objective that catches all errors must not swallow it.

    Args:
        message: What happened.
        died: A part of it was killed; after a few times the run is not tried again.
    """

    def __init__(self, message: str = "", *, died: bool = False) -> None:
        super().__init__(message)
        self.died = died
