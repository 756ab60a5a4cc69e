"""What a study trains: the reference transformer, text, and a trainer for one or more devices.

- `model`, `experts`: the reference transformer, with mixtures of experts.
- `unit_scaled`: the same in unit scaling, for u-muP.
- `adapters`: adapters on a trained model.
- `data`: text to train on.
- `trainer`, `progress`: one training run, and when it counts as diverged.
- `ranks`: processes that train one model together.
- `resume`, `checkpoint`: stop a run and continue it.
- `trunk`: runs of several lengths that share their stable part.
- `faults`: failures on demand, for tests.
"""

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
