"""Does the trainer do on a GPU what it does on a CPU, and how fast? Three minutes on one GPU, no network.

    python studies/gpu/check.py --text text --out results    # on a machine with a GPU
    python studies/gpu/check.py --tiny --out results         # on a CPU, seconds: only that the script works

Each check writes a line to `check.jsonl` as soon as it is done; one that fails writes its error, and the
next one begins. Not seen on a GPU yet: only the tiny version has been run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from transfer_bo import Diverged, Scale
from transfer_bo.errors import Preempted
from transfer_bo.parametrization import Parametrization, parametrize
from transfer_bo.runners.objective import is_out_of_memory
from transfer_bo.training import Corpus, TrainResult, build_transformer, count_flops, load_text, train
from transfer_bo.training.settings import TrainSettings
from transfer_bo.training.trainer import token_loss
from transfer_bo.verification.dry_run import dry_run
from transfer_bo.verification.gpus import gpu_of_device

FP32_EAGER = TrainSettings(precision="float32", compile=False)
LR = 0.02


@dataclass(frozen=True)
class Sizes:
    """What is trained: on a GPU, or in a tiny version on a CPU."""

    base: Scale
    small: Scale
    """For curves and resuming."""
    models: tuple[Scale, ...]
    """For the speed, by number of parameters."""
    proxy: Scale
    """For trials per hour."""
    workers: tuple[int, ...]
    context: int


FULL = Sizes(
    base=Scale(width=128, depth=4, batch=32, tokens=2e6),
    small=Scale(width=256, depth=4, batch=32, tokens=2e6),
    models=(
        Scale(width=512, depth=8, batch=64, tokens=2e6),  # 25M
        Scale(width=1024, depth=10, batch=32, tokens=2e6),  # 126M
        Scale(width=1536, depth=12, batch=16, tokens=1e6),  # 340M
    ),
    proxy=Scale(width=128, depth=4, batch=32, tokens=1e6),
    workers=(1, 2, 4, 8),
    context=512,
)
TINY = Sizes(
    base=Scale(width=16, depth=1, batch=4, tokens=2e3),
    small=Scale(width=16, depth=1, batch=4, tokens=2e3),
    models=(Scale(width=32, depth=1, batch=4, tokens=2e3),),
    proxy=Scale(width=16, depth=1, batch=4, tokens=1e3),
    workers=(1,),
    context=32,
)


class Checks:
    """The checks, each a method whose name begins with `check_`, in the order of this class.

    Args:
        sizes: What is trained.
        corpus: The text.
        device: "cuda" or "cpu".
    """

    def __init__(self, sizes: Sizes, corpus: Corpus, device: str) -> None:
        self.sizes = sizes
        self.corpus = corpus
        self.device = device
        self.base = parametrize(build_transformer, base=sizes.base)

    def train(self, scale: Scale, lr: float = LR, **more: Any) -> TrainResult:
        """One run."""
        return train(
            build_transformer(scale),
            self.base.at(scale),
            {"lr": lr},
            self.corpus,
            **{
                "batch": scale.batch,
                "tokens": scale.tokens,
                "context": self.sizes.context,
                "seed": 0,
                "device": self.device,
                **more,
            },
        )

    def check_precision(self) -> dict[str, Any]:
        """Bfloat16, compiled, against float32: the largest difference of the curves, beside that of seeds."""
        plain, other = (self.train(self.sizes.small, settings=FP32_EAGER, seed=seed).curve for seed in (0, 1))
        fast = self.train(self.sizes.small, settings=TrainSettings(precision="bfloat16")).curve
        difference = max(abs(fast[p] - plain[p]) for p in plain)
        seeds = max(abs(other[p] - plain[p]) for p in plain)
        return {"difference": difference, "of_seeds": seeds, "ok": difference < seeds}

    def check_resume(self) -> dict[str, Any]:
        """Stopped in the middle and continued, against a run without a stop."""
        whole = self.train(self.sizes.small, settings=FP32_EAGER).loss
        with tempfile.TemporaryDirectory() as folder:
            path, calls = Path(folder) / "state.pt", iter(range(10**9))
            with contextlib.suppress(Preempted):
                self.train(
                    self.sizes.small, settings=FP32_EAGER, checkpoint=path, stop=lambda: next(calls) == 3
                )
            stopped = path.exists()
            resumed = self.train(self.sizes.small, settings=FP32_EAGER, checkpoint=path).loss
        return {"whole": whole, "resumed": resumed, "ok": stopped and abs(whole - resumed) < 1e-3}

    def check_divergence(self) -> dict[str, Any]:
        """A learning rate far too high is recognised."""
        try:
            loss = self.train(self.sizes.small, lr=1e4).loss
        except Diverged as error:
            return {"message": str(error), "ok": True}
        return {"loss": loss, "ok": False}

    def check_out_of_memory(self) -> dict[str, Any]:
        """A batch that does not fit is recognised, and fits in parts."""
        if self.device == "cpu":
            return {"skipped": "a CPU has no limit of its own"}
        scale = self.sizes.models[-1]
        parts, rows = 1, int(scale.batch)
        free, _ = torch.cuda.mem_get_info()
        while self.needs(scale.replace(batch=rows), 1) < 1.5 * free:
            rows *= 2
        large = scale.replace(batch=rows, tokens=float(rows * self.sizes.context))
        recognised = False
        while parts <= rows:
            try:
                self.train(large, accumulate=parts, settings=TrainSettings(compile=False))
                break
            except Exception as error:
                recognised = is_out_of_memory(error)
                if not recognised:
                    raise
                parts *= 2
            torch.cuda.empty_cache()
        return {"rows": rows, "parts": parts, "ok": recognised and 1 < parts <= rows}

    def needs(self, scale: Scale, parts: int) -> float:
        """Predicted bytes of a step."""
        needs = dry_run(
            self.base.at(scale), self.sizes.context, accumulate=parts, autocast=self.device == "cuda"
        )
        return needs.memory.total

    def check_memory(self) -> dict[str, Any]:
        """Peak of a step without compilation, predicted and measured."""
        scale = self.sizes.models[0]
        predicted = self.needs(scale, 1)
        if self.device == "cpu":
            return {"predicted": predicted, "skipped": "torch does not count a CPU's peak"}
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        few = scale.replace(tokens=float(3 * scale.batch * self.sizes.context))
        self.train(few, settings=TrainSettings(compile=False))
        measured = torch.cuda.max_memory_allocated() - before
        return {"predicted": predicted, "measured": measured, "ok": 0.9 < measured / predicted < 1.1}

    def check_speed(self) -> dict[str, Any]:
        """Tokens per second against a loop written by hand, and utilisation, by size of the model."""
        found = {}
        for scale in self.sizes.models:
            speeds: list[float] = []
            self.train(scale, speed=speeds.append, reports=4)
            plain = self.hand_written(scale)
            gpu = gpu_of_device(torch.cuda.get_device_name()) if self.device == "cuda" else None
            flops = count_flops(build_transformer, scale, self.sizes.context) / float(scale.tokens)
            ours = speeds[-1]
            found[f"width {scale.width:g}, depth {scale.depth:g}"] = {
                "parameters": sum(p.numel() for p in build_transformer(scale).parameters()),
                "tokens_per_second": ours,
                "hand_written": plain,
                "ratio": ours / plain,
                "utilisation": None if gpu is None else ours * flops / gpu.flops_per_second,
            }
        if self.device == "cpu":
            return {**found, "skipped": "the ratio says nothing for models so small"}
        return {**found, "ok": all(each["ratio"] >= 0.98 for each in found.values())}

    def hand_written(self, scale: Scale, steps: int = 20) -> float:
        """Tokens per second of the shortest loop that trains the same model, after three steps."""
        p: Parametrization = self.base.at(scale)
        model = build_transformer(scale).to(self.device)
        p.initialize(model, {"lr": LR}, 0)
        optimizer = torch.optim.AdamW(p.param_groups(model, {"lr": LR}), fused=True)
        is_cuda = self.device == "cuda"
        run = torch.compile(model, dynamic=False) if is_cuda else model
        windows = self.corpus.batch(0, 0, int(scale.batch), self.sizes.context).to(self.device)

        started = 0.0
        for step in range(steps + 3):
            if step == 3:
                if is_cuda:
                    torch.cuda.synchronize()
                started = time.perf_counter()
            with torch.autocast(self.device, torch.bfloat16, enabled=is_cuda):
                loss = token_loss(run, windows)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        float(loss.detach())  # waits for the device
        return steps * windows[:, 1:].numel() / (time.perf_counter() - started)

    def check_workers(self) -> dict[str, Any]:
        """Trials of a small proxy per hour, by the number of processes that share the device."""
        return {"trials_per_hour": self.rates()}

    def check_workers_with_mps(self) -> dict[str, Any]:
        """The same under NVIDIA's Multi-Process Service, which runs kernels of several processes at once."""
        if self.device == "cpu" or shutil.which("nvidia-cuda-mps-control") is None:
            return {"skipped": "there is no nvidia-cuda-mps-control"}
        with tempfile.TemporaryDirectory() as folder:
            pipes = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
            os.environ |= pipes  # what starts from here on finds the service
            try:
                subprocess.run(["nvidia-cuda-mps-control", "-d"], check=True, timeout=30)
                return {"trials_per_hour": self.rates()}
            finally:
                subprocess.run(
                    ["nvidia-cuda-mps-control"], input="quit\n", text=True, check=False, timeout=60
                )
                for name in pipes:
                    del os.environ[name]

    def rates(self) -> dict[str, float]:
        """Number of workers -> trials per hour of all of them together."""
        rates = {}
        for workers in self.sizes.workers:
            context = get_context("spawn")
            with ProcessPoolExecutor(workers, mp_context=context) as pool:
                job = (self.sizes, self.corpus, self.device)
                list(pool.map(_one_proxy, [job] * workers))  # loads libraries
                started = time.perf_counter()
                list(pool.map(_one_proxy, [job] * (2 * workers)))
                rates[str(workers)] = 2 * workers * 3600 / (time.perf_counter() - started)
        return rates


def _one_proxy(job: tuple[Sizes, Corpus, str]) -> None:
    sizes, corpus, device = job
    Checks(sizes, corpus, device).train(sizes.proxy, settings=TrainSettings(compile=False), threads=1)


def run_checks(checks: Checks, seconds: float) -> Iterator[dict[str, Any]]:
    """The result of each check; none is begun when the time is up."""
    end = time.monotonic() + seconds
    methods: list[Callable[[], dict[str, Any]]] = [
        getattr(checks, name)
        for name in dict.fromkeys(name for kind in reversed(type(checks).__mro__) for name in vars(kind))
        if name.startswith("check_")
    ]
    for method in methods:
        name, started = method.__name__.removeprefix("check_"), time.monotonic()
        if started > end:
            yield {"check": name, "skipped": "no time remains"}
            continue
        try:
            found = method()
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}", "ok": False}
        yield {"check": name, "seconds": round(time.monotonic() - started, 1), **found}


def main(arguments: list[str] | None = None) -> int:
    """Run all checks; 1 if one of them failed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--text", default="sotu")
    parser.add_argument("--out", type=Path, default=Path())
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--seconds", type=float, default=170.0)
    options = parser.parse_args(arguments)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    checks = Checks(TINY if options.tiny else FULL, load_text(options.text), device)
    options.out.mkdir(parents=True, exist_ok=True)
    failed = False
    with (options.out / "check.jsonl").open("w") as file:
        for found in run_checks(checks, options.seconds):
            line = json.dumps({"device": name, "torch": torch.__version__, **found})
            print(line, flush=True)
            file.write(line + "\n")
            file.flush()
            failed |= found.get("ok") is False
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
