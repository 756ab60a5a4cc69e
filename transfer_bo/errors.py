"""Errors that a user can act on."""

__all__ = ["Diverged", "TransferError"]


class TransferError(ValueError):
    """Bad input: one sentence that says what is wrong, the value, and what to do.

    The command line prints the sentence and ends with exit code 2; it never shows a traceback for it.
    """


class Diverged(RuntimeError):
    """A training run blew up (loss not finite, or far above where it started).

    Raise it from an objective under `transfer_bo.objective` to say "these HPs are unstable at this scale".
    """
