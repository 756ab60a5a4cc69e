"""Train a small model in two gloo processes, wrapped in several ways; what `test_distributed.py` starts.

    python two_processes.py RANK FOLDER

Rank 0 saves into FOLDER/result.pt: per way, initial values, losses, gradient norms and final values.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from small_models import VOCAB, Model
from torch import nn

from transfer_bo.parametrization import parametrize
from transfer_bo.parametrization.builds import parameters_of
from transfer_bo.scale import Scale

BASE = Scale(width=16, depth=1, batch=8, tokens=1000)
TARGET = Scale(width=32, depth=2, batch=8, tokens=1000)
HPS = {"lr": 0.02, "eps": 1e-3, "residual.mlp": 3.0, "lr.@0": 2.0, "lr.@1": 0.5, "init_std": 1.5}
STEPS = 4
WORLD = 2


def build(scale: Scale) -> nn.Module:
    """Float64, so that mistakes stand out from rounding."""
    return Model(scale, post_norm=True).double()


def batch(step: int) -> torch.Tensor:
    """Four sequences, other ones at each step."""
    return torch.randint(0, VOCAB, (4, 9), generator=torch.Generator().manual_seed(step))


def run(p, model, max_norm, part, values=lambda x: x):
    """Initialize and train; `part` of each batch, `values` makes a tensor whole."""
    p.initialize(model, HPS, seed=3)

    def snapshot():
        return {name: values(q.detach()).clone() for name, q in parameters_of(model).items()}

    start = snapshot()
    optimizer = torch.optim.AdamW(p.param_groups(model, HPS))
    losses, norms = [], []
    for step in range(STEPS):
        tokens = batch(step)[part]
        optimizer.zero_grad()
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        norms.append(float(p.clip_grad_norm_(model, max_norm)))
        optimizer.step()
        losses.append(loss.item())
    return {"start": start, "losses": losses, "norms": norms, "end": snapshot()}


def ways():
    """How the model is wrapped."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    mesh = init_device_mesh("cpu", (WORLD,))

    def sharded():
        model = build(TARGET)
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        return fully_shard(model, mesh=mesh)

    def sharded_from_meta():
        with torch.device("meta"):
            model = build(TARGET)
        fully_shard(model, mesh=mesh)
        return model.to_empty(device="cpu")

    return {
        "ddp": lambda: DistributedDataParallel(build(TARGET)),
        "ddp_of_compiled": lambda: DistributedDataParallel(torch.compile(build(TARGET), backend="eager")),
        "compiled_ddp": lambda: torch.compile(DistributedDataParallel(build(TARGET)), backend="eager"),
        "fsdp": sharded,
        "fsdp_from_meta": sharded_from_meta,
        "compiled_fsdp": lambda: torch.compile(sharded(), backend="eager"),
    }


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A sharded tensor, gathered."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def main(rank: int, folder: Path) -> None:
    """Every way with equal and with split batches, with folded and with registered multipliers."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    half = slice(2 * rank, 2 * rank + 2)
    results = {}
    for fold in (True, False):
        p = copy.deepcopy(parametrize(build, BASE, TARGET, fold=fold))
        for name, make in ways().items():
            if fold or name in ("ddp", "fsdp"):
                results[name, fold, "same"] = run(p, make(), 1e9, slice(None), whole)
                results[name, fold, "split"] = run(p, make(), 0.3, half, whole)
    if rank == 0:
        torch.save(results, folder / "result.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
