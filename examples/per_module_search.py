"""Learning rates per module of your own model, from small proxies to a large one (30 seconds on one core)."""

import optuna
import torch
from torch import nn

import transfer_bo as tb


class Block(nn.Module):
    """x + down(relu(up(norm(x))))."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(n), nn.Linear(n, n), nn.Linear(n, n)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Same shape."""
        return x + self.down(torch.relu(self.up(self.norm(x))))


def build_model(scale: tb.Scale) -> nn.Module:
    """The model at any scale: 16 numbers in, one out."""
    blocks = [Block(scale.width) for _ in range(scale.depth)]
    return nn.Sequential(nn.Linear(16, scale.width), *blocks, nn.Linear(scale.width, 1))


base = tb.Scale(width=16, depth=2, batch=64, tokens=4e3)
ladder = tb.Ladder([base, base.replace(width=32), base.replace(depth=4), base.replace(tokens=12e3)])
target = tb.Scale(width=256, depth=4, batch=64, tokens=32e3)
p = tb.parametrize(build_model, base=base)
space = tb.Space.per_module(p, kinds=["lr"])


@tb.objective
def objective(trial: optuna.Trial) -> float:
    """Train at the proposed scale with the proposed base HPs; return the loss on fresh data."""
    scale, hps = ladder.suggest(trial), space.suggest(trial)
    model, settings, data = build_model(scale), p.at(scale), torch.Generator().manual_seed(0)
    settings.initialize(model, hps, seed=trial.number)
    optimizer = torch.optim.AdamW(settings.param_groups(model, hps))
    settings.check(model, optimizer).raise_if_wrong()
    for rows in [scale.batch] * (scale.tokens // scale.batch) + [2048]:
        x = torch.randn(rows, 16, generator=data)
        loss = (model(x).squeeze(-1) - torch.sin(6 * x.mean(-1))).square().mean()
        optimizer.zero_grad()
        loss.backward()
        settings.clip_grad_norm_(model, 1.0)
        optimizer.step()
    return loss.item()


if __name__ == "__main__":
    study = optuna.create_study(sampler=tb.TransferSampler(ladder=ladder, target=target, seed=0))
    study.optimize(objective, n_trials=16)
    suggestion = tb.suggest(study)
    print(tb.verify(study, objective, suggestion).text)
    print(suggestion.export(p, "torch"))  # or "hf", "torchtitan", "megatron", "json"
