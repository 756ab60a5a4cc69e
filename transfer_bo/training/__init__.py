"""What a study trains: the reference transformer, text, and a trainer for one device."""

from transfer_bo.training.data import Corpus, load_text
from transfer_bo.training.model import Transformer, TransformerConfig, build_transformer
from transfer_bo.training.trainer import Parametrization, TrainResult, count_flops, train

__all__ = [
    "Corpus",
    "Parametrization",
    "TrainResult",
    "Transformer",
    "TransformerConfig",
    "build_transformer",
    "count_flops",
    "load_text",
    "train",
]
