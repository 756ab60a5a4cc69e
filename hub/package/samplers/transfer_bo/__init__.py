"""A sampler over model scale, as a package of OptunaHub; the code is in the library transfer-bo."""

from transfer_bo import Diverged, Ladder, Scale, TransferSampler, objective, suggest

__all__ = ["Diverged", "Ladder", "Scale", "TransferSampler", "objective", "suggest"]
