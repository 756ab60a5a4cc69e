"""What a run needs, worked out without values, against real training steps on the CPU."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from transfer_bo import Scale
from transfer_bo.cli import app
from transfer_bo.errors import ScaleError, TrainingError, TransferError
from transfer_bo.parametrization import Parametrization, parametrize
from transfer_bo.training import build_transformer, count_flops
from transfer_bo.training.ranks import Ranks
from transfer_bo.training.trainer import token_loss
from transfer_bo.verification.dry_run import DryRun, dry_run
from transfer_bo.verification.gpus import GPUS, find_gpu

SIZES = {
    "activations": (64, 2, 8, 64),
    "weights": (128, 4, 2, 16),
}
"""Width, depth, batch and context of models, by what fills most of their memory."""


def at(width: int, depth: int, batch: int) -> Parametrization:
    """The reference transformer, parametrized."""
    base = Scale(width=32, depth=2, batch=batch, tokens=1e6)
    return parametrize(build_transformer, base=base, target=base.replace(width=width, depth=depth))


def step(p: Parametrization, model: nn.Module, run: nn.Module, tokens: torch.Tensor, parts: int = 1) -> None:
    """Two steps of the trainer, of which the second has the states of AdamW from its beginning."""
    optimizer = torch.optim.AdamW(p.param_groups(model), fused=True)
    for _ in range(2):
        for part in tokens.tensor_split(parts):
            loss = token_loss(run, part) / parts
            loss.backward()
            del loss
        p.clip_grad_norm_(model, 1.0)
        optimizer.step()
        optimizer.zero_grad()


def peak_of(prof: Any) -> int:
    """Bytes at the peak of what was allocated under torch's profiler."""
    now = peak = 0
    for event in prof.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


def measured_peak(p: Parametrization, context: int, parts: int = 1) -> int:
    """Bytes at the peak of a real step, on one rank."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        model = p.build_model(p.target)
        tokens = torch.randint(0, 256, (p.target.batch, context + 1))
        step(p, model, model, tokens, parts)
    return peak_of(prof)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("size", SIZES)
def test_memory_is_that_of_a_real_step(size: str, parts: int) -> None:
    """Within 10% of torch's profiler, and every part of it is needed for that."""
    width, depth, batch, context = SIZES[size]
    p = at(width, depth, batch)

    memory = dry_run(p, context, accumulate=parts, autocast=False).memory
    measured = measured_peak(p, context, parts)

    assert measured == pytest.approx(memory.total, rel=0.1)
    largest = "activations" if size == "activations" and parts == 1 else "optimizer_states"
    without = dataclasses.replace(memory, **{largest: 0.0})
    assert measured != pytest.approx(without.total, rel=0.1)


def test_every_term_of_the_memory_is_what_it_is_called() -> None:
    """Weights, gradients and the two averages of AdamW have 4 bytes per parameter each."""
    p = at(128, 4, 2)
    found = dry_run(p, 16, autocast=False)
    n_bytes = 4 * sum(found.parameters.values())

    assert n_bytes == found.memory.weights
    assert 2 * n_bytes == pytest.approx(found.memory.optimizer_states, rel=1e-3)
    assert 0.5 * n_bytes < found.memory.gradients <= n_bytes
    assert 0 == found.memory.communication


@pytest.fixture
def four_ranks() -> Iterator[None]:
    """This process as the first of four whose messages go nowhere."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("four_ranks")
def test_memory_of_fsdp2_is_that_of_a_real_step() -> None:
    """Within 10% of a step of a model that `fully_shard` has spread over four ranks."""
    p, context = at(128, 6, 4), 32

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        model = p.build_model(p.target)
        run = Ranks("fsdp2").spread(model)
        step(p, model, run, torch.randint(0, 256, (1, context + 1)))
    memory = dry_run(p, context, ranks=4, parallel="fsdp2", autocast=False).memory

    assert peak_of(prof) == pytest.approx(memory.total, rel=0.1)


def test_memory_of_ddp_holds_its_buckets() -> None:
    """Within 10% of a step under DDP, whose buckets are as large as the gradients."""
    p, context = at(128, 4, 4), 16
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
            model = p.build_model(p.target)
            run = nn.parallel.DistributedDataParallel(model, init_sync=False)
            step(p, model, run, torch.randint(0, 256, (2, context + 1)))
    finally:
        dist.destroy_process_group()

    memory = dry_run(p, context, ranks=2, autocast=False).memory

    assert peak_of(prof) == pytest.approx(memory.total, rel=0.1)
    assert memory.weights == memory.communication


def test_flops_are_those_of_a_real_step() -> None:
    """Within 2% of torch's counter over forward and backward pass, and of the cost of the study."""
    p, context = at(64, 2, 4), 64
    model = p.build_model(p.target)
    tokens = torch.randint(0, 256, (p.target.batch, context + 1))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        token_loss(model, tokens).backward()

    found = dry_run(p, context)

    assert counter.get_total_flops() / (p.target.batch * context) == pytest.approx(
        found.flops_per_token, rel=0.02
    )
    assert count_flops(build_transformer, p.target, context) == pytest.approx(found.flops, rel=0.02)


def test_parameters_are_counted_by_role() -> None:
    """The sum is that of the real model, frozen tensors included; roles are those of the rule."""
    p = at(64, 2, 4)
    model = p.build_model(p.target)

    found = dry_run(p, 16).parameters

    assert sum(q.numel() for q in model.parameters()) == sum(found.values())
    assert model.embedding.weight.numel() == found["input_embedding"]


def test_a_model_of_ones_own_gives_its_loss() -> None:
    """Images or numbers need no tokens: the loss makes its own input."""

    def build(scale: Scale) -> nn.Module:
        hidden = int(scale.width)
        return nn.Sequential(nn.Linear(8, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.Linear(hidden, 3))

    base = Scale(width=16, batch=4, tokens=1e4)
    p = parametrize(build, base=base, target=base.replace(width=64))

    found = dry_run(p, 1, loss=lambda model, rows: model(torch.zeros(rows, 8)).square().mean())

    # No gradient is needed for the first layer's input.
    assert 2 * (2 * 8 * 64 + 3 * 64 * 64 + 3 * 3 * 64) == found.flops_per_token


def test_autocast_keeps_fewer_activations_and_hours_follow_the_flops() -> None:
    """In bfloat16 activations are smaller; twice the ranks or the utilisation take half the time."""
    p = at(64, 2, 8)
    half, full = dry_run(p, 64), dry_run(p, 64, autocast=False)
    gpu = find_gpu("h100")

    assert half.memory.activations < full.memory.activations
    assert half.hours(gpu) == pytest.approx(2 * dataclasses.replace(half, ranks=2).hours(gpu))
    assert half.hours(gpu) == pytest.approx(2 * dataclasses.replace(half, utilisation=0.8).hours(gpu))
    assert half.flops_per_token * 1e6 / (0.4 * 989e12 * 3600) == pytest.approx(half.hours(gpu))


def large(**options: Any) -> DryRun:
    """A model of 6 billion parameters, which is never built with values."""
    base = Scale(width=64, depth=2, batch=64, tokens=1e6)
    p = parametrize(build_transformer, base=base, target=base.replace(width=8192, depth=8, tokens=2e6))
    return dry_run(p, 128, **{"gpus": [GPUS["H100"]], **options})


def test_a_target_that_cannot_fit_is_said_to() -> None:
    """The sentence names the GPU; sharding over many ranks makes it fit."""
    alone, sharded = large(), large(ranks=32, parallel="fsdp2")

    assert not alone.fits(GPUS["H100"])
    assert "H100" in str(alone.warning)
    assert str(alone.warning) in alone.text
    assert sharded.fits(GPUS["H100"])
    assert sharded.warning is None


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"ranks": 3}, "3"),
        ({"ranks": 0}, "0"),
        ({"accumulate": 0}, "0"),
        ({"utilisation": 1.5}, "1.5"),
        ({"loss": lambda model, rows: 1 / 0}, "ZeroDivisionError"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], named: str) -> None:
    """The sentence holds the value, or what went wrong in the model."""
    with pytest.raises(TrainingError) as error:
        dry_run(at(32, 2, 4), 16, **options)

    assert named in str(error.value)


def test_a_target_without_tokens_is_refused() -> None:
    """Nothing can be said of a run whose length is not known."""
    p = parametrize(build_transformer, base=Scale(width=32, depth=2), target=Scale(width=64, depth=2))

    with pytest.raises(ScaleError) as error:
        dry_run(p, 16)

    assert "batch" in str(error.value)


def test_an_unknown_gpu_is_refused() -> None:
    """The sentence lists those that are known."""
    with pytest.raises(TransferError) as error:
        find_gpu("H9000")

    assert "H9000" in str(error.value)
    assert "MI300X" in str(error.value)


def test_the_command_prints_tables_or_json(write_study: Any, tmp_path: Path) -> None:
    """Both without a search before, and nothing is written."""
    path = write_study()
    before = sorted(tmp_path.rglob("*"))

    tables = CliRunner().invoke(app, ["verify", str(path), "--dry-run", "--gpu", "A10"])
    plain = CliRunner().invoke(
        app, ["verify", str(path), "--dry-run", "--json", "--ranks", "2", "--replicate", "1"]
    )

    assert (0, 0) == (tables.exit_code, plain.exit_code), tables.output + plain.output
    found = json.loads(plain.stdout)
    assert ("A10" in tables.stdout, "H100" in tables.stdout) == (True, False)
    assert list(GPUS) == list(found["gpus"])
    assert (2, 4) == (found["ranks"], found["runs"])
    assert 4 / 100 == pytest.approx(found["cost_in_budgets"], rel=0.02)
    assert before == sorted(tmp_path.rglob("*"))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--dry-run", "--gpu", "H9000"], "H9000"),
        (["--dry-run", "--ranks", "3"], "3 ranks"),
        (["--dry-run", "--parallel", "zero"], "zero"),
        (["--dry-run", "--utilisation", "0"], "utilisation"),
        (["--gpu", "H100"], "--gpu"),
        (["--json"], "--json"),
    ],
)
def test_the_command_refuses_bad_options_in_one_sentence(
    write_study: Any, arguments: list[str], named: str
) -> None:
    """Exit code 2, one line that holds the value."""
    result = CliRunner().invoke(app, ["verify", str(write_study()), *arguments])

    assert (2, "") == (result.exit_code, result.stdout)
    assert named in result.stderr
    assert 1 == result.stderr.count("\n")


def test_the_command_refuses_what_it_cannot_build(write_study: Any) -> None:
    """No target, or a program whose model is not known: one sentence."""
    no_target = write_study(("[ladder.target]", "[[ladder.rungs]]"))
    first = CliRunner().invoke(app, ["verify", str(no_target), "--dry-run"])
    program = write_study(("[space]", '[command]\nrun = ["true"]\n[space]'))
    second = CliRunner().invoke(app, ["verify", str(program), "--dry-run"])

    assert (2, 2) == (first.exit_code, second.exit_code)
    assert "ladder.target" in first.stderr
    assert "command" in second.stderr
    assert (1, 1) == (first.stderr.count("\n"), second.stderr.count("\n"))
