"""Training on a part of the text: at random, or chosen so that its gradient matches that of all (AUTOMATA).

After arXiv:2203.08212, whose subsets are for evaluating HPs and cheaper than full data by their fraction f.
The batches that a run at f = 1 would draw (each window of the text at most once) are the pool. A run at f
trains on f of the pool's batches, for f of the steps. With the method "gradient" it first trains `WARMUP` of
its steps on random batches of the pool; then the last layer's gradient of every batch of the pool is taken
at the weights so far, which costs a forward pass over the pool, and orthogonal matching pursuit chooses
batches and weights w >= 0 such that

    ‖ḡ - Σ_i w_i g_i‖² + λ ‖w‖²  is small,  ḡ the mean of all g_i.

A weight is how often a batch is used in the steps that follow. Gradients are sketched to `SKETCH` x `SKETCH`
numbers by random signs, which keeps their products to about 2%.

Symbols: P batches in the pool, K chosen, d numbers per gradient; B, T, V as in the trainer.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transfer_bo.errors import TrainingError
from transfer_bo.scale import Scale
from transfer_bo.training.data import Corpus

__all__ = [
    "DATA_FRACTION",
    "SubsetBatches",
    "full_scale",
    "last_layer_gradients",
    "match_gradients",
    "selection_share",
    "subset_sizes",
    "trained_scale",
]

Array = npt.NDArray[np.float64]
Method = Literal["gradient", "random"]

DATA_FRACTION = "data_fraction"
"""Axis of a scale: share of the data that a run is trained on."""
WARMUP = 0.2
"""Share of the steps before the selection: gradients at the initial weights only know token frequencies."""
SKETCH = 64
"""Numbers to which each side of a gradient is sketched, at most."""
MAX_REFITS = 64
"""Fits of the weights in one selection, at most; for more batches several are chosen between two fits."""
RIDGE = 1e-3
"""λ, relative to the mean of ‖g_i‖²."""


def trained_scale(scale: Scale) -> Scale:
    """The scale as it is trained, without the axis of the fraction: its tokens are those of the subset.

    The rules for duration, such as that of the learning rate, then apply by themselves.
    """
    if DATA_FRACTION not in scale:
        return scale
    axes = {axis: value for axis, value in scale.items() if axis != DATA_FRACTION}
    return Scale({**axes, "tokens": scale[DATA_FRACTION] * scale["tokens"]})


def full_scale(scale: Scale) -> Scale:
    """The scale of the same run on all data, without the axis of the fraction."""
    return Scale({axis: value for axis, value in scale.items() if axis != DATA_FRACTION})


def subset_sizes(corpus: Corpus, scale: Scale, context: int) -> tuple[int, int]:
    """(P, K): batches in the pool, and of a run at this scale.

    Raises:
        TrainingError: If the subset is smaller than one batch.
    """
    steps = max(1, round(scale["tokens"] / (scale["batch"] * context)))
    windows = max(0, (len(corpus.train) - 1) // context)
    pool = min(steps, int(windows // scale["batch"]))
    share = scale[DATA_FRACTION] * pool
    if share < 1:
        raise TrainingError(
            f"A fraction {scale[DATA_FRACTION]:g} of {pool} batches of {scale['batch']} x {context} tokens "
            "is less than one; set a larger fraction, a smaller batch or more tokens."
        )
    return pool, max(1, round(share))


def selection_share(corpus: Corpus, scale: Scale, context: int, method: Method) -> float:
    """Cost of the selection as a share of a run on all data: a forward pass over the pool."""
    if method == "random" or scale[DATA_FRACTION] >= 1:
        return 0.0
    pool, _ = subset_sizes(corpus, scale, context)
    return pool * scale["batch"] * context / scale["tokens"] / 3


class SubsetBatches:
    """Takes the place of a `Corpus` in `train`; give `after_step` to it as well.

    Args:
        corpus: All of the text.
        scale: Has the axes batch, tokens and data_fraction.
        context: Tokens per sequence.
        method: How the subset is chosen.
        seed: Of the order of the pool.
        file: Where the selection is kept, so that a run that is resumed goes on with it; None for nowhere.
    """

    def __init__(
        self, corpus: Corpus, scale: Scale, context: int, method: Method, seed: int, file: Path | None = None
    ) -> None:
        self.corpus, self.method, self.seed, self.file = corpus, method, seed, file
        self.context, self.size = context, int(scale["batch"])
        self.pool, self.chosen = subset_sizes(corpus, scale, context)
        tokens = trained_scale(scale)["tokens"]
        self.steps = max(1, round(tokens / (self.size * context)))
        self.selects_at = round(WARMUP * self.steps)
        # The trainer loads the next batch while a step computes, before it is known what is chosen after it.
        self.random_steps = self.selects_at + 1
        self._order = np.random.default_rng((seed, 1)).permutation((len(corpus.train) - 1) // context)
        self._later: npt.NDArray[np.int64] | None = None

    @property
    def vocab_size(self) -> int:
        """Of the text."""
        return self.corpus.vocab_size

    def heldout_windows(self, count: int, context: int) -> Tensor:
        """Of the text."""
        return self.corpus.heldout_windows(count, context)

    def batch(self, seed: int, step: int, batch: int, context: int) -> Tensor:
        """The batch of a step, from 1 on: batch x (context + 1), int64."""
        return self._windows(self._number(step))

    def _number(self, step: int) -> int:
        """Which batch of the pool."""
        if self.method == "gradient" and step > self.random_steps:
            if self._later is None:
                self._later = self._load()
            return int(self._later[step - self.random_steps - 1])
        among = self.pool if self.method == "gradient" else self.chosen
        epoch, position = divmod(step - 1, among)
        return int(np.random.default_rng((self.seed, 2, epoch)).permutation(among)[position])

    def _windows(self, number: int) -> Tensor:
        rows = self._order[number * self.size : (number + 1) * self.size]
        return self.corpus.windows_at(rows * self.context, self.context)

    def after_step(self, step: int, model: nn.Module) -> None:
        """Choose the subset, at the end of the steps before it."""
        if self.method != "gradient" or step != self.selects_at:
            return
        device = next(model.parameters()).device
        batches = (self._windows(number).to(device) for number in range(self.pool))
        gradients = last_layer_gradients(model, batches, self.vocab_size)
        weights = match_gradients(gradients, self.chosen)
        self._later = _repeated(weights, max(1, self.steps - self.random_steps), self.seed)
        if self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            unfinished = self.file.with_suffix(".part.npy")
            np.save(unfinished, self._later)
            unfinished.replace(self.file)

    def _load(self) -> npt.NDArray[np.int64]:
        if self.file is None or not self.file.exists():
            raise TrainingError(
                f"The subset was to be chosen after step {self.selects_at}, but the run began later and "
                "kept no selection; start it again from step 0, with after_step given to the trainer."
            )
        kept: npt.NDArray[np.int64] = np.load(self.file)
        return kept


def _repeated(weights: Array, steps: int, seed: int) -> npt.NDArray[np.int64]:
    """Numbers of batches for so many steps, each as often as its weight says, in random order."""
    rng = np.random.default_rng((seed, 3))
    ends = np.cumsum(weights / weights.sum())
    points = (np.arange(steps) + rng.random()) / steps  # systematic sampling: counts within 1 of expected
    return rng.permutation(np.searchsorted(ends, points).clip(max=len(weights) - 1)).astype(np.int64)


@torch.no_grad()
def last_layer_gradients(model: nn.Module, batches: Any, vocab_size: int) -> Array:
    """Gradient of each batch's mean loss in the weights of the last layer, sketched (P x d).

    Args:
        model: Tokens to logits; the last linear layer that is called must give the logits.
        batches: Windows (B x (T + 1)), one tensor per batch.
        vocab_size: V.

    Raises:
        TrainingError: If no linear layer gives the logits.
    """
    called: list[tuple[Tensor, Tensor]] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(output, Tensor) and output.size(-1) == vocab_size:
            called.append((inputs[0], output))

    hooks = [m.register_forward_hook(keep) for m in model.modules() if isinstance(m, nn.Linear)]
    was_training = model.training
    model.eval()
    sketched: list[Tensor] = []
    try:
        for windows in batches:
            called.clear()
            logits = model(windows[:, :-1]).float()
            if not called:
                raise TrainingError(
                    "No linear layer of this model gives the logits, so that the last layer's gradients are "
                    'unknown; use method = "random".'
                )
            sketched.append(_sketch(logits, called[-1][0].float(), windows[:, 1:]))
    finally:
        for hook in hooks:
            hook.remove()
        model.train(was_training)
    return np.asarray(torch.stack(sketched).double().cpu().numpy())


def _sketch(logits: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
    """The outer products of residuals (softmax minus one-hot) and inputs, averaged, as a row (d)."""
    residual = logits.softmax(-1).flatten(0, 1)
    residual -= F.one_hot(targets.flatten(), residual.size(-1)).to(residual)
    sides = [side @ _signs(side.size(-1), side) for side in (residual, inputs.flatten(0, 1))]
    product: Tensor = torch.einsum("nv,nd->vd", *sides) / len(residual)
    return product.flatten()


def _signs(size: int, like: Tensor) -> Tensor:
    """Random signs that keep lengths on average (size x at most SKETCH); nothing is sketched if small."""
    if size <= SKETCH:
        return torch.eye(size, device=like.device)
    generator = torch.Generator().manual_seed(size)
    signs = torch.randint(0, 2, (size, SKETCH), generator=generator) * 2.0 - 1.0
    return (signs / math.sqrt(SKETCH)).to(like.device)


def match_gradients(gradients: Array, count: int) -> Array:
    """Weights of the batches (P), at most `count` of them positive, by orthogonal matching pursuit.

    Where fewer batches already match the mean as well as more would, the others that are still to be chosen
    are those nearest to it, with the least positive weight.

    Args:
        gradients: One row per batch (P x d).
        count: K.
    """
    from scipy.optimize import nnls

    P = len(gradients)
    count = min(count, P)
    products = gradients @ gradients.T
    wanted = products.mean(1)  # g_i · ḡ
    ridge = RIDGE * max(float(np.trace(products)) / P, 1e-300)
    chosen: list[int] = []
    weights = np.zeros(0)
    together = max(1, -(-count // MAX_REFITS))

    while len(chosen) < count:
        residual = wanted - (products[:, chosen] @ weights if chosen else 0.0)
        residual[chosen] = -np.inf
        best = np.argsort(-residual, kind="stable")[: min(together, count - len(chosen))]
        chosen += [int(i) for i in best]

        among = products[np.ix_(chosen, chosen)] + ridge * np.eye(len(chosen))
        lower = np.linalg.cholesky(among)
        weights, _ = nnls(lower.T, np.linalg.solve(lower, wanted[chosen]))

    found = np.zeros(P)
    positive = weights[weights > 0]
    found[chosen] = np.maximum(weights, positive.min() if len(positive) else 1.0)
    return found
