"""What a study file with `[data] subset` adds to a trial: its part of the text, and what that costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import nn

from transfer_bo.errors import TransferError
from transfer_bo.runners.attempt import Attempt
from transfer_bo.scale import Scale
from transfer_bo.study_file import StudyFile
from transfer_bo.training import count_flops
from transfer_bo.training.data import Corpus
from transfer_bo.training.subset import (
    SubsetBatches,
    full_scale,
    selection_share,
    subset_sizes,
    trained_scale,
)

__all__ = ["all_of", "check_subsets_hold_a_batch", "flops_of", "subset_of"]

AfterStep = Callable[[int, nn.Module], None]


def check_subsets_hold_a_batch(file: StudyFile, corpus: Corpus) -> None:
    """Compare every fraction with the text.

    Raises:
        StudyFileError: For a fraction of less than one batch.
    """
    for scale in file.proxies if file.data.subset is not None else ():
        try:
            subset_sizes(corpus, scale, file.data.context)
        except TransferError as error:
            raise file.error("data.subset.fraction", str(error)) from None


def flops_of(file: StudyFile, corpus: Corpus, build: Callable[[Scale], nn.Module], scale: Scale) -> float:
    """FLOPs of a run at a scale, those of choosing its data included."""
    flops = count_flops(build, trained_scale(scale), file.data.context)
    if file.data.subset is None:
        return flops
    share = selection_share(corpus, scale, file.data.context, file.data.subset.method)
    return flops + share * count_flops(build, full_scale(scale), file.data.context)


def subset_of(
    file: StudyFile, corpus: Corpus, attempt: Attempt, checkpoint: Path | None
) -> SubsetBatches | None:
    """The part of the text that an attempt is trained on; None for all of it."""
    subset, scale = file.data.subset, attempt.scale
    if subset is None or scale.data_fraction >= 1:
        return None
    kept = None if checkpoint is None else checkpoint.with_suffix("") / "subset.npy"
    return SubsetBatches(corpus, scale, file.data.context, subset.method, attempt.seed, kept)


def all_of(hooks: Sequence[AfterStep | None]) -> AfterStep | None:
    """One function that calls several after each step; None for none."""
    known = [hook for hook in hooks if hook is not None]
    if not known:
        return None

    def after_step(step: int, model: nn.Module) -> None:
        for hook in known:
            hook(step, model)

    return after_step
