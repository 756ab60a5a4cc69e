"""Which directions of updates reduce the loss: the decomposition of arXiv:2512.22768, recorded in training.

Symbols: w_t the weights averaged over steps (EMA), φ the loss on fixed held-out samples, G its gradient and
ΔW the change of a matrix over an interval of the averaged trajectory, S = ½ (GᵀΔW + ΔWᵀG) the alignment
matrix with eigenvalues |λ_1| >= |λ_2| >= ..., u_j its eigenvectors. tr S = <G, ΔW>, so that over all tensors
and intervals

    φ_end - φ_start = Σ λ_i,    δφ^k = Σ_{i<=k} λ_i (top k directions of every matrix; vectors whole).

The averaged trajectory is smooth, which makes the sum of <G, ΔW> the true change of loss. Beyond the paper, G
is the mean of the gradients at both ends of an interval (the trapezoid rule): it costs nothing and makes the
sum exact to second order. Of S and its transposed version ½ (G ΔWᵀ + ΔW Gᵀ) the smaller is taken, so that k
runs to the width.

Sample level: ψ_ij = Σ u_jᵀ G_iᵀ ΔW u_j with G_i the gradient of sample i at the end of the interval; MCI_i =
Σ_j j |ψ_ij| / Σ_j |ψ_ij| is the mean index of the directions that sample i learns from. Low: an easy sample,
learned from few directions; the samples with the highest are those whose best HP drifts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transfer_bo.errors import DiagnosticError
from transfer_bo.quantities import counted

__all__ = ["Decomposition", "TrajectoryRecorder", "window_losses"]

Array = npt.NDArray[np.float64]

AVERAGING = (1 / 144, 1 / 3.6)
"""Averaging time 1/(1 - decay) at the start and from `RAMP` on, as shares of the run; linear in between.
2512.22768 has 50 to 2000 steps (decay .98 to .9995) over the first 2000 of about 7200."""
RAMP = 1 / 3.6
"""Share of the run over which the averaging time grows."""


@dataclass(frozen=True)
class Decomposition:
    """The loss change of one run, by direction.

    Attributes:
        steps: Steps at which the averaged trajectory was recorded (T + 1).
        losses: φ at these steps (T + 1).
        eigenvalues: Eigenvalues of each matrix's alignment matrix, largest size first (T x its smaller side).
        vectors: Change of loss by tensors that are no matrices (T).
        mci: Mean index of the directions each sample learns from (samples); empty without `by_sample`.
    """

    steps: tuple[int, ...]
    losses: Array
    eigenvalues: dict[str, Array] = field(repr=False)
    vectors: Array = field(repr=False)
    mci: Array = field(repr=False)

    @property
    def width(self) -> int:
        """The largest number of directions that a matrix has."""
        return max(int(values.shape[1]) for values in self.eigenvalues.values())

    def top(self) -> Array:
        """φ^k, k = 1 ... width: the loss at the start plus its change by the top k directions (width)."""
        change = np.full(self.width, self.vectors.sum())
        for values in self.eigenvalues.values():
            cumulative = values.cumsum(1).sum(0)
            change += np.pad(cumulative, (0, self.width - len(cumulative)), mode="edge")
        return np.asarray(self.losses[0] + change)

    def layers(self, k: int) -> dict[str, float]:
        """Change of loss by the top k directions of each matrix."""
        return {name: float(values[:, :k].sum()) for name, values in self.eigenvalues.items()}


class TrajectoryRecorder:
    """Records a model in training; give its `after_step` to `transfer_bo.training.train`.

    Args:
        losses: From a model to the loss of each held-out sample (N); φ is their mean. The samples must be the
            same at every call.
        steps: Steps of the whole run.
        intervals: Intervals into which the averaged trajectory is cut, at most; each costs two passes
            over the samples.
        by_sample: Whether to compute MCI too, which costs a backward pass per sample and interval.

    Raises:
        DiagnosticError: For a count below 1.
    """

    def __init__(
        self,
        losses: Callable[[nn.Module], Tensor],
        steps: int,
        *,
        intervals: int = 100,
        by_sample: bool = False,
    ) -> None:
        for name, value in {"steps": steps, "intervals": intervals}.items():
            if value < 1:
                raise DiagnosticError(
                    f"A trajectory of {name} = {value} has nothing to decompose; set it to 1 or more."
                )
        self.losses, self.steps, self.by_sample = losses, steps, by_sample
        self._record_at = {round(steps * i / intervals) for i in range(intervals + 1)}
        self._ema: dict[str, Tensor] = {}
        self._recorded: list[int] = []
        self._values: list[float] = []
        self._last: tuple[dict[str, Tensor], dict[str, Tensor]] | None = None
        self._spectra: dict[str, list[Array]] = {}
        self._vectors: list[float] = []
        self._psi: Tensor | None = None

    def after_step(self, step: int, model: nn.Module) -> None:
        """Average the weights after a step; step 0 is the start."""
        weights = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
        if step == 0:
            self._ema = {name: w.clone() for name, w in weights.items()}
        elif not self._ema:
            raise DiagnosticError(f"The recorder was first called at step {step}; call it from step 0 on.")
        else:
            keep = 1 - 1 / self._averaging(step)
            for name, w in weights.items():
                self._ema[name].lerp_(w, 1 - keep)
        if step in self._record_at:
            self._record(step, model)

    def _averaging(self, step: int) -> float:
        """1/(1 - decay), in steps."""
        start, end = (max(1.0, share * self.steps) for share in AVERAGING)
        return start + (end - start) * min(1.0, step / max(1.0, RAMP * self.steps))

    def _record(self, step: int, model: nn.Module) -> None:
        """Loss and gradients at the averaged weights; the model's own weights are restored."""
        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        own = {name: p.detach().clone() for name, p in parameters.items()}
        with torch.no_grad():
            for name, p in parameters.items():
                p.copy_(self._ema[name])

        try:
            of_samples = self.losses(model)
            phi = of_samples.mean()
            gradients = _gradients(phi, parameters, retain=self.by_sample)
            if self._last is not None:
                moved = {name: self._ema[name] - w for name, w in self._last[0].items()}
                between = {name: (gradients[name] + g) / 2 for name, g in self._last[1].items()}
                bases = self._decompose(between, moved)
                if self.by_sample:
                    self._index(of_samples, parameters, moved, bases)
        finally:
            with torch.no_grad():
                for name, p in parameters.items():
                    p.copy_(own[name])

        self._last = ({name: w.clone() for name, w in self._ema.items()}, gradients)
        self._recorded.append(step)
        self._values.append(float(phi.detach()))

    def _decompose(self, gradient: dict[str, Tensor], moved: dict[str, Tensor]) -> dict[str, Tensor]:
        """Eigenvalues of each matrix for one interval; returns the eigenvectors (columns), in their order."""
        bases, vectors = {}, 0.0
        for name, G in gradient.items():
            dW = moved[name]
            if G.dim() != 2:
                vectors += float((G.double() * dW.double()).sum())
                continue
            A, B = _oriented(G).double(), _oriented(dW).double()
            product = A.T @ B
            values, directions = torch.linalg.eigh((product + product.T) / 2)
            order = values.abs().argsort(descending=True)
            self._spectra.setdefault(name, []).append(values[order].cpu().numpy())
            bases[name] = directions[:, order]
        self._vectors.append(vectors)
        return bases

    def _index(
        self,
        of_samples: Tensor,
        parameters: dict[str, nn.Parameter],
        moved: dict[str, Tensor],
        bases: dict[str, Tensor],
    ) -> None:
        """Add one interval to ψ (samples x width)."""
        width = max(basis.size(1) for basis in bases.values())
        if self._psi is None:
            self._psi = torch.zeros(len(of_samples), width, dtype=torch.float64)
        turned = {name: _oriented(moved[name]).double() @ basis for name, basis in bases.items()}
        for i, loss in enumerate(of_samples):
            of_one = _gradients(loss, parameters, retain=True)
            for name, basis in bases.items():
                along = (_oriented(of_one[name]).double() @ basis * turned[name]).sum(0)
                self._psi[i, : len(along)] += along.cpu()

    def result(self) -> Decomposition:
        """The recorded decomposition.

        Raises:
            DiagnosticError: If the weights were recorded at fewer than two steps, or the model has no matrix.
        """
        if len(self._recorded) < 2 or not self._spectra:
            raise DiagnosticError(
                f"The weights of {counted(len(self._recorded), 'step')} were recorded; give after_step "
                "to the trainer "
                "and the run's number of steps to the recorder."
            )
        mci = np.zeros(0)
        if self._psi is not None:
            size = self._psi.abs().numpy()
            mci = size @ np.arange(1, size.shape[1] + 1) / np.maximum(size.sum(1), 1e-300)
        return Decomposition(
            tuple(self._recorded),
            np.array(self._values),
            {name: np.array(values) for name, values in self._spectra.items()},
            np.array(self._vectors),
            mci,
        )


def _oriented(W: Tensor) -> Tensor:
    """The matrix with its smaller side as columns."""
    return W if W.size(0) >= W.size(1) else W.T


def _gradients(loss: Tensor, parameters: dict[str, nn.Parameter], retain: bool) -> dict[str, Tensor]:
    found = torch.autograd.grad(loss, list(parameters.values()), retain_graph=retain, allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else g.detach()
        for (name, p), g in zip(parameters.items(), found, strict=True)
    }


def window_losses(windows: Tensor) -> Callable[[nn.Module], Tensor]:
    """Losses for the recorder: mean next-token loss of each window (windows: N x (T + 1))."""

    def losses(model: nn.Module) -> Tensor:
        tokens = windows.to(next(model.parameters()).device)
        logits: Any = model(tokens[:, :-1])
        return F.cross_entropy(logits.mT, tokens[:, 1:], reduction="none").mean(1)

    return losses
