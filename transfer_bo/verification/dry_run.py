"""What a run at the target needs, found without memory or data: parameters, FLOPs, memory, hours, cost.

The trainer's step (forward, backward, clipping, optimizer) runs on fake tensors: those of the meta device
with the name of a real one, so that operators choose the kernels that they would use. FLOPs are those of
torch's `FlopCounterMode`. Memory is the sum of all live storages, seen operator by operator, at its peak.

On a GPU the trainer compiles the model, which then keeps fewer activations: the estimate is an upper bound.
Workspaces of kernels and the CUDA context are not in it (`USABLE`).

Symbols:
    R: Number of ranks, each with one GPU.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from transfer_bo.errors import ScaleError, TrainingError, TransferError
from transfer_bo.parametrization import Parametrization
from transfer_bo.quantities import counted
from transfer_bo.scale import Scale
from transfer_bo.training.ranks import Parallel
from transfer_bo.training.settings import checkpoint_activations
from transfer_bo.training.trainer import token_loss
from transfer_bo.verification.gpus import GPUS, Gpu
from transfer_bo.verification.room import USABLE
from transfer_bo.verification.step_memory import Loss, Memory, step_memory

__all__ = ["USABLE", "DryRun", "dry_run"]

FROZEN = "frozen"
"""Role of tensors that are not trained."""


@dataclass(frozen=True)
class DryRun:
    """What one run at the target needs."""

    target: Scale
    """Where it runs."""

    parameters: dict[str, int]
    """Number of parameters by role."""

    flops_per_token: float
    """Forward and backward pass, attention included, nothing recomputed."""

    memory: Memory
    """Per GPU."""

    ranks: int
    """R: number of GPUs."""

    parallel: Parallel
    """How ranks share the model."""

    accumulate: int
    """Parts in which a rank's share of the batch passes through the model."""

    utilisation: float
    """Share of the GPU's peak FLOP/s that training achieves (model FLOPs utilisation, 2204.02311)."""

    gpus: tuple[Gpu, ...]
    """GPUs that are considered, at least one."""

    budget: float | None = None
    """FLOPs that the search may spend; None if it has no budget in FLOPs."""

    runs: int = 1
    """Number of runs at the target that are planned."""

    @property
    def flops(self) -> float:
        """FLOPs of one run."""
        return self.flops_per_token * float(self.target.tokens)

    @property
    def cost(self) -> float | None:
        """Cost of all planned runs, as a multiple of the search's budget."""
        return None if self.budget is None else self.runs * self.flops / self.budget

    def hours(self, gpu: Gpu) -> float:
        """Hours of one run on R GPUs of a kind; evaluation, start and checkpoints not included."""
        return self.flops / (self.ranks * gpu.flops_per_second * self.utilisation) / 3600

    def fits(self, gpu: Gpu) -> bool:
        """Whether the peak leaves enough of the GPU's memory free, see `USABLE`."""
        return self.memory.total <= USABLE * gpu.memory

    @property
    def text(self) -> str:
        """What the runs compute and cost, in words; then the `warning`."""
        sentences = [
            f"One run takes {self.flops:.3g} FLOPs, {self.flops_per_token:.3g} per token; hours are those at "
            f"{self.utilisation:.0%} of the peak in bfloat16, with {self.parallel} on {self.ranks} GPU(s)."
        ]
        if self.cost is not None:
            sentences.append(
                f"Verification makes up to {counted(self.runs, 'run')}, which cost {self.cost:.3g} "
                "times the budget "
                "of the search."
            )
        return " ".join([*sentences, *([self.warning] if self.warning else [])])

    @property
    def warning(self) -> str | None:
        """Why the target fits on none of the GPUs that are considered, and what helps; None if it fits."""
        if any(map(self.fits, self.gpus)):
            return None
        gpu = max(self.gpus, key=lambda gpu: gpu.memory)
        usable = USABLE * gpu.memory
        if self.memory.persistent > usable:
            advice = "weights and optimizer states alone are more; use fsdp2 with more ranks, or larger GPUs"
        else:
            advice = "activations are too many; use more ranks, or pass the batch in more parts (accumulate)"
        return (
            f"The target cannot fit on {self.ranks} {gpu.name} with {self.parallel}: it needs "
            f"{self.memory.total / 1e9:.3g} GB per GPU, of which {usable / 1e9:.3g} GB are usable; {advice}."
        )

    def to_json(self) -> dict[str, Any]:
        """All results as plain JSON values, memory in bytes."""
        return {
            "target": dict(self.target),
            "parameters": {**self.parameters, "total": sum(self.parameters.values())},
            "flops_per_token": self.flops_per_token,
            "flops": self.flops,
            "memory_per_gpu": {**asdict(self.memory), "total": self.memory.total},
            "ranks": self.ranks,
            "parallel": self.parallel,
            "accumulate": self.accumulate,
            "utilisation": self.utilisation,
            "gpus": {g.name: {**asdict(g), "hours": self.hours(g), "fits": self.fits(g)} for g in self.gpus},
            "runs": self.runs,
            "cost_in_budgets": self.cost,
            "warning": self.warning,
        }


def dry_run(
    parametrization: Parametrization,
    context: int,
    *,
    hps: Mapping[str, float] | None = None,
    loss: Loss | None = None,
    gpus: Iterable[Gpu] = GPUS.values(),
    ranks: int = 1,
    parallel: Parallel = "ddp",
    accumulate: int = 1,
    utilisation: float = 0.4,
    activation_checkpointing: bool = False,
    autocast: bool = True,
    budget: float | None = None,
    runs: int = 1,
) -> DryRun:
    """Work out what one training run at the target of a parametrization needs; nothing is allocated.

    Args:
        parametrization: From `parametrize`; its target has the axes `batch` (sequences) and `tokens`.
        context: Tokens per sequence; 1 if `tokens` counts samples, such as images.
        hps: Hyperparameters in base coordinates; they decide which multipliers are active.
        loss: Gives the model's loss; by default that of a language model that maps tokens to logits.
        gpus: GPUs to consider, see `GPUS`.
        ranks: Processes that train together, each with a GPU.
        parallel: "ddp" or "fsdp2", as `train` shares the model.
        accumulate: Parts in which a rank's share of the batch passes through the model.
        utilisation: Share of a GPU's peak FLOP/s that training achieves, in (0, 1].
        activation_checkpointing: Whether blocks keep only their inputs for the backward pass.
        autocast: Whether matrix products run in bfloat16, as the trainer's do on cuda.
        budget: FLOPs that the search may spend.
        runs: Number of runs at the target that are planned.

    Raises:
        ScaleError: If the target has no batch or no tokens.
        TrainingError: If the ranks do not divide the batch, a number is out of range, or the model cannot run
            without values.
    """
    target = parametrization.target
    rows = _rows_per_part(target, ranks, accumulate)
    if not 0 < utilisation <= 1:
        raise TrainingError(f"The utilisation is {utilisation!r}; set it to a number in (0, 1].")

    def of_tokens(model: nn.Module, rows: int) -> Tensor:
        return token_loss(model, torch.zeros(rows, context + 1, dtype=torch.long))

    loss = loss or of_tokens
    parametrization.settings(hps)  # reads values of the base model, which fake tensors do not have
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), FakeTensorMode():
            warnings.simplefilter("ignore")
            model = parametrization.build_model(target).train()
            # Of the kernels of attention on a CPU, torch counts only this one.
            with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                loss(model, 1).backward()  # type: ignore[no-untyped-call]
            if activation_checkpointing:
                checkpoint_activations(model)
            memory = step_memory(
                parametrization, model, hps, loss, rows, accumulate, ranks, parallel, autocast=autocast
            )
    except TransferError:
        raise
    except Exception as error:
        raise TrainingError(
            f"A training step at {target} failed without values, with {type(error).__name__}: {error}; "
            "give a loss whose operations do not depend on values."
        ) from error

    parameters = Counter({t.role.value: 0 for t in parametrization.tensors.values()})
    for tensor in parametrization.tensors.values():
        parameters[tensor.role.value] += torch.Size(tensor.shape).numel()
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    return DryRun(
        target=target,
        parameters=dict(parameters) | ({FROZEN: frozen} if frozen else {}),
        flops_per_token=counter.get_total_flops() / context,
        memory=memory,
        ranks=ranks,
        parallel=parallel,
        accumulate=accumulate,
        utilisation=utilisation,
        gpus=tuple(gpus),
        budget=budget,
        runs=runs,
    )


def _rows_per_part(target: Scale, ranks: int, accumulate: int) -> int:
    """Sequences that pass through the model at a time, on each rank; raises as `dry_run` does."""
    for axis in ("batch", "tokens"):
        if axis not in target:
            raise ScaleError(f"{target} has no axis {axis!r}; give it one, to work out what a run needs.")
    for name, value in (("ranks", ranks), ("accumulate", accumulate)):
        if value < 1:
            raise TrainingError(f"{name} = {value}; set it to a positive whole number.")
    if target.batch % ranks:
        raise TrainingError(
            f"A batch of {target.batch} cannot be divided over {ranks} ranks; "
            "set the ranks to a divisor of the batch."
        )
    return math.ceil(float(target.batch) / ranks / accumulate)
