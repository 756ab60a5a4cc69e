"""Train a model once and return its held-out loss: what a trial of a study does.

Losses are in nats per token; the progress of a run is step / number of steps, in (0, 1].

Symbols:
    B: Sequences per batch.
    T: Tokens per sequence (the context).
    V: Size of the vocabulary.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from transfer_bo.errors import Preempted, ScaleError, TrainingError
from transfer_bo.scale import Scale
from transfer_bo.training.data import Batches, prefetched
from transfer_bo.training.experts import balance_load
from transfer_bo.training.progress import Progress
from transfer_bo.training.ranks import Parallel, Ranks, return_freed_memory
from transfer_bo.training.resume import Resume
from transfer_bo.training.settings import TrainSettings, checkpoint_activations, compiled
from transfer_bo.training.trunk import Trunk

__all__ = ["Parametrization", "TrainResult", "count_flops", "token_loss", "train"]

FINAL_WINDOWS = 256
"""Held-out windows of the final loss.

Measured on runs of 200k tokens (width 32, depth 2, context 128): the difference of two runs differs from that
on the whole held-out text by .002-.003 nats (standard deviation), while seeds differ by .03. Evaluation takes
9% of such a run.
"""

REPORT_WINDOWS = 16
"""Held-out windows of each report during the run.

The difference of two runs then has an error of .01 nats (standard deviation). The loss itself differs from
the final one by .05 nats, the same amount in all runs.
"""


class Parametrization(Protocol):
    """The part of a parametrization that the trainer needs."""

    def initialize(self, model: nn.Module, hps: Mapping[str, float], seed: int) -> None:
        """Draw the initial weights in place."""

    def optimizers(
        self, model: nn.Module, hps: Mapping[str, float], *, fused: bool
    ) -> list[torch.optim.Optimizer]:
        """Optimizers that together hold every tensor once, with fused kernels where there are any."""

    def clip_grad_norm_(self, model: nn.Module, max_norm: float) -> Tensor:
        """Clip the gradients in place; returns their norm before."""


@dataclass(frozen=True)
class TrainResult:
    """One finished training run."""

    loss: float
    """Held-out loss at the end, over `FINAL_WINDOWS` windows."""
    curve: dict[float, float] = field(repr=False)
    """Progress -> held-out loss over `REPORT_WINDOWS` windows, the same ones at progress 1."""
    train_loss: float
    """Train loss at the end, averaged over about 10 steps."""
    seconds: float
    """Wall-clock time, evaluation included."""
    steps: int
    tokens: int
    """steps x batch x context."""
    tokens_per_second: float = math.nan
    """Of training in this process since the report before the last, evaluation left out."""


def train(
    model: nn.Module,
    parametrization: Parametrization,
    hps: Mapping[str, float],
    corpus: Batches,
    *,
    batch: int,
    tokens: float,
    context: int,
    seed: int,
    device: str | torch.device | None = None,
    threads: int | None = None,
    reports: int = 10,
    report: Callable[[float, float], None] | None = None,
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 60.0,
    stop: Callable[[], bool] = lambda: False,
    accumulate: int = 1,
    parallel: Parallel = "ddp",
    settings: TrainSettings = TrainSettings(),  # noqa: B008 - it is immutable
    speed: Callable[[float], None] | None = None,
    after_step: Callable[[int, nn.Module], None] | None = None,
    trunk: Trunk | None = None,
) -> TrainResult:
    """Initialize a model and train it; on a CPU the same arguments give the same bits.

    In a `torch.distributed` process group every rank calls this with the same arguments and trains on its
    share of each batch; the loss is that of one process, to rounding.

    Args:
        model: Tokens (B x T) to logits (B x T x V); may be on the meta device. It is trained in place. With
            fsdp2 a model on the meta device is sharded first, and each rank initializes its own shards.
        parametrization: Gives the initial weights, the optimizers and the clipping.
        hps: Hyperparameters by name, for the parametrization.
        corpus: Source of batches and held-out windows.
        batch: Sequences per step.
        tokens: Tokens to train on; rounded to whole steps of batch x context tokens, at least one.
        context: Tokens per sequence.
        seed: Seed of initial weights and batches.
        device: Default: cuda, else mps, else cpu.
        threads: CPU threads during the run; default: torch's current number.
        reports: Number of reports, evenly spaced over the run, the last at its end.
        report: Called with (progress, held-out loss of the report windows), on the first rank only; an
            exception that it raises ends the run.
        checkpoint: File to resume from if it exists, and to write to; the caller removes it.
        checkpoint_seconds: Seconds between two checkpoints.
        stop: Called at every step (every tenth on cuda); if it returns True, a checkpoint is written and the
            run stops.
        accumulate: Number of parts in which a rank's share of the batch passes through the model. The
            gradient is the same to rounding; activations take that many times less memory.
        parallel: How ranks share the model: "ddp" or "fsdp2".
        settings: Schedule, clipping, precision, memory.
        speed: Called with tokens per second of training, evaluation left out, after each report, on the first
            rank only.
        after_step: Called with (0, model) before the first step and with (step, model) after each, for
            diagnostics; it must not change the weights.
        trunk: The stable part of runs that differ in `tokens` only: this run starts where it is kept, with
            the result of a run from the beginning, and keeps it where it goes further. The schedule must be
            "wsd", with `warmup_steps`.

    Raises:
        Diverged: if the loss is not finite, or the train loss averaged over about 10 steps is more than 1 nat
            above both the initial loss and ln V, the loss of a uniform prediction. A large initial loss that
            falls, or a spike of one or two steps, is no divergence.
        Preempted: if it was stopped; the checkpoint is written.
        TrainingError: for a count that is not positive, a negative seed, a device that is not available, text
            that is too short, a batch that cannot be divided evenly over the ranks, or an optimizer that
            fsdp2 cannot shard.
    """
    _check_arguments({"batch": batch, "tokens": tokens, "context": context, "reports": reports}, seed)
    device = _checked_device(device)
    ranks = Ranks(parallel)
    is_cuda = device.type == "cuda"
    in_bfloat16 = settings.in_bfloat16(device)
    steps = max(1, round(tokens / (batch * context)))
    final_windows = corpus.heldout_windows(FINAL_WINDOWS, context).to(device)
    report_windows = corpus.heldout_windows(REPORT_WINDOWS, context).to(device)

    with _threads(threads), contextlib.ExitStack() as stack:
        started = time.perf_counter()
        # Only for models that draw numbers as they run, such as dropout: each rank has its own.
        torch.manual_seed(seed + 1_000_003 * ranks.rank)
        wrapped = _start(model, parametrization, hps, seed, device, ranks, settings)
        optimizers = parametrization.optimizers(model, hps, fused=True)
        if ranks.is_sharded:
            _refuse_sharded(optimizers)
        peaks = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
        forward: Callable[[Tensor], Tensor] = wrapped
        if settings.is_compiled(device):
            forward = compiled(wrapped, settings)

        identity = {"seed": seed, "batch": batch, "context": context, "steps": steps, "hps": dict(hps)}
        resume = Resume(checkpoint, checkpoint_seconds, identity, ranks)
        progress = Progress(corpus.vocab_size, started)
        stored = resume.load(model, optimizers)
        stable_end = settings.stable_end(steps)
        keep_at = {step for step in trunk.ends if step <= stable_end} if trunk is not None else set()
        of_trunk = {
            **{k: v for k, v in identity.items() if k != "steps"},
            "warmup": settings.warmup_of(steps),
        }
        if stored is None and trunk is not None:
            stored = trunk.load(model, optimizers, stable_end, of_trunk, ranks)
        if stored is not None:
            progress.restore(stored)
        first = progress.step + 1

        report_at = {max(1, round(steps * (i + 1) / reports)) for i in range(reports)}
        check_every = 10 if is_cuda else 1  # reading the loss waits for the device
        losses: list[Tensor] = []
        rate = _Rate(batch * context, first - 1)

        def load(step: int) -> Tensor:
            """This rank's share of a batch."""
            return ranks.share(corpus.batch(seed, step, batch, context))

        def train_step(step: int, share: Tensor) -> Tensor:
            """One step of the optimizer on this rank's share of the batch; the loss of that share."""
            share = share.to(device, non_blocking=True)
            parts = []
            for windows, weight in ranks.micro_batches(wrapped, share, accumulate):
                with torch.autocast(device.type, torch.bfloat16, enabled=in_bfloat16):
                    loss = token_loss(forward, windows) * weight
                loss.backward()  # type: ignore[no-untyped-call]
                parts.append(loss.detach())
            total = torch.stack(parts).sum()

            if settings.max_norm < math.inf:
                parametrization.clip_grad_norm_(model, settings.max_norm)
            factor = settings.lr_factor(step, steps)
            groups = (group for optimizer in optimizers for group in optimizer.param_groups)
            for group, peak in zip(groups, peaks, strict=True):
                group["lr"] = factor * peak
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            balance_load(model, ranks.mean)
            return total

        def report_loss(step: int) -> None:
            """Evaluate on the report windows and hand the loss to `report`."""
            with rate.paused(step):
                heldout = evaluate(model, forward, report_windows, batch, in_bfloat16=in_bfloat16)
            progress.curve[step / steps] = progress.check("held-out", heldout)
            if speed is not None and ranks.rank == 0:
                speed(rate.tokens_per_second)
            if report is not None and ranks.rank == 0:
                report(step / steps, heldout)

        model.train()
        if after_step is not None and first == 1:
            after_step(0, model)
        remaining = range(first, steps + 1)
        batches = stack.enter_context(contextlib.closing(prefetched(load, remaining, pin=is_cuda)))
        for step, share in zip(remaining, batches, strict=True):
            losses.append(train_step(step, share))
            if after_step is not None:
                after_step(step, model)
            if step % check_every and step not in report_at and step not in keep_at:
                continue

            for value in ranks.mean(torch.stack(losses)).tolist():
                progress.see(value)
            losses.clear()
            if trunk is not None and step in keep_at:
                trunk.save(model, optimizers, progress.state(step), of_trunk, ranks)
            try:
                if step in report_at:
                    report_loss(step)
            except Preempted:
                resume.save(model, optimizers, progress.state(step))
                raise
            if ranks.any(stop(), device):
                resume.save(model, optimizers, progress.state(step))
                raise Preempted(f"Stopped at step {step} of {steps}.")
            if ranks.any(resume.is_due(), device):
                resume.save(model, optimizers, progress.state(step))

        if progress.seconds() > checkpoint_seconds:  # so that a result that is lost costs no training
            resume.save(model, optimizers, progress.state(steps))
        return TrainResult(
            loss=progress.check(
                "held-out", evaluate(model, forward, final_windows, batch, in_bfloat16=in_bfloat16)
            ),
            curve=progress.curve,
            train_loss=progress.smoothed,
            seconds=progress.seconds(),
            steps=steps,
            tokens=steps * batch * context,
            tokens_per_second=rate.tokens_per_second,
        )


def _start(
    model: nn.Module,
    parametrization: Parametrization,
    hps: Mapping[str, float],
    seed: int,
    device: torch.device,
    ranks: Ranks,
    settings: TrainSettings,
) -> nn.Module:
    """The initialized model on its device, spread over the ranks: the module to call in training."""
    is_meta = any(parameter.is_meta for parameter in model.parameters())
    if is_meta:
        _refuse_frozen(model)
    if settings.activation_checkpointing:
        checkpoint_activations(model)

    if is_meta and ranks.is_sharded:  # no rank has room for the whole model
        return_freed_memory()
        wrapped = ranks.spread(model, in_bfloat16=settings.in_bfloat16(device))
        model.to_empty(device=device)
        parametrization.initialize(model, hps, seed)
        return wrapped

    if is_meta:
        model.to_empty(device="cpu")
    # Before the move to the device, so that every device starts from the same weights.
    parametrization.initialize(model, hps, seed)
    model.to(device)
    return ranks.spread(model, in_bfloat16=settings.in_bfloat16(device))


class _Rate:
    """Tokens per second of training in this process, from one report to the next: the first one compiles.

    Args:
        tokens: Tokens per step.
        step: The step that training goes on from.
    """

    def __init__(self, tokens: int, step: int) -> None:
        self.tokens_per_second = math.nan
        self._tokens = tokens
        self._last = step
        self._since = time.perf_counter()

    @contextlib.contextmanager
    def paused(self, step: int) -> Iterator[None]:
        """Take the rate at a step, and do not count the time inside."""
        seconds = max(time.perf_counter() - self._since, 1e-9)
        self.tokens_per_second = (step - self._last) * self._tokens / seconds
        yield
        self._last, self._since = step, time.perf_counter()


@torch.no_grad()
def evaluate(
    model: nn.Module,
    run: Callable[[Tensor], Tensor],
    windows: Tensor,
    batch: int,
    *,
    in_bfloat16: bool = False,
) -> float:
    """Mean loss over windows (n x (T + 1)), `batch` at a time; `run` is the model, compiled or not."""
    device_type = windows.device.type
    model.eval()
    with torch.autocast(device_type, torch.bfloat16, enabled=in_bfloat16):
        losses = [token_loss(run, part) * len(part) for part in torch.split(windows, batch)]
    model.train()
    return float(torch.stack(losses).sum()) / len(windows)


def _check_arguments(counts: Mapping[str, float], seed: int) -> None:
    for name, value in counts.items():
        if not 0 < value < math.inf or (name != "tokens" and value != int(value)):
            raise TrainingError(f"Training needs a positive number of {name}, not {value!r}; correct it.")
    if seed < 0:
        raise TrainingError(f"The seed is {seed!r}; set it to 0 or more.")


def _refuse_frozen(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            raise TrainingError(
                f"The model is on the meta device, where its frozen tensor {name!r} has no values; "
                "build it on the CPU, with these values loaded."
            )


def _refuse_sharded(optimizers: list[torch.optim.Optimizer]) -> None:
    """Refuse an optimizer whose step on a shard is not the shard of its step.

    Raises:
        TrainingError: naming it.
    """
    elementwise = (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD)
    for optimizer in optimizers:
        if not isinstance(optimizer, elementwise):
            raise TrainingError(
                f"The optimizer {type(optimizer).__name__} needs whole tensors, which fsdp2 splits over "
                "ranks; use ddp, or one of AdamW, Adam and SGD."
            )


def _checked_device(device: str | torch.device | None) -> torch.device:
    """The given device, or else the fastest kind that is available.

    Raises:
        TrainingError: if it is not available.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    kinds = [kind for kind, is_available in available.items() if is_available]
    chosen = str(device or kinds[0])
    if chosen.partition(":")[0] not in kinds:
        raise TrainingError(f"Device {chosen!r} is not available here; use one of {', '.join(kinds)}.")
    return torch.device(chosen)


def count_flops(build_model: Callable[[Scale], nn.Module], scale: Scale, context: int) -> float:
    """FLOPs of the training run at a scale: 3 x the forward pass (2 for backward) x its tokens.

    Counted from the matrix products of one sequence through the model on the meta device, attention included:
    for a transformer 6 N D with N its matrix weights and D its tokens, plus attention. Small models on a CPU
    take longer than in proportion to their FLOPs.

    Args:
        build_model: Gives the model at a scale.
        scale: Has the axis `tokens`.
        context: Tokens per sequence.

    Raises:
        ScaleError: if the scale has no axis `tokens`.
    """
    if "tokens" not in scale:
        raise ScaleError(
            f"{scale} has no axis 'tokens'; give it one, as the cost depends on the run's length."
        )
    with torch.device("meta"), torch.no_grad():
        model = build_model(scale)
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, context, dtype=torch.long))
    return 3.0 * float(counter.get_total_flops()) / context * float(scale.tokens)


def token_loss(run: Callable[[Tensor], Tensor], windows: Tensor) -> Tensor:
    """Mean cross-entropy of the next token, in nats, over windows (n x (T + 1)) of tokens."""
    return F.cross_entropy(run(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())


@contextlib.contextmanager
def _threads(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
