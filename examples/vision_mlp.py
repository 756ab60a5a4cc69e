"""An image classifier: HPs from narrow networks to a wide one (half a minute on one core).

Run it: .venv/bin/python examples/vision_mlp.py. The images are synthetic; replace `batch` by your own data.
"""

import optuna
import torch
from torch import nn

import transfer_bo as tb

PROTOTYPES = torch.randn(10, 12, 12, generator=torch.Generator().manual_seed(0))


def batch(size: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy images of ten classes (N x 1 x 12 x 12), each shifted by a few pixels, and their classes (N)."""
    labels = torch.randint(10, (size,), generator=generator)
    shift = int(torch.randint(-2, 3, (), generator=generator))
    images = PROTOTYPES[labels].roll(shift, dims=-1) + torch.randn(size, 12, 12, generator=generator)
    return images.unsqueeze(1), labels


def build_model(scale: tb.Scale) -> nn.Module:
    """The classifier at a width."""
    n = int(scale.width)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(144, n), nn.ReLU(), nn.Linear(n, n), nn.ReLU(), nn.Linear(n, 10)
    )


base = tb.Scale(width=16, batch=64, tokens=10_000)  # tokens: images seen in training
ladder = tb.Ladder([base, base.replace(width=32), base.replace(width=32, tokens=20_000)])
target = tb.Scale(width=256, batch=64, tokens=60_000)
p = tb.parametrize(build_model, base=base, inputs=(torch.zeros(1, 1, 12, 12),))
space = tb.Space([tb.HP.of("lr", low=1e-4, high=0.1), tb.HP.of("weight_decay")])


@tb.objective
def objective(trial: optuna.Trial) -> float:
    """Train at the proposed scale; return the loss on fresh images."""
    scale, hps = ladder.suggest(trial), space.suggest(trial)
    model, settings, data = build_model(scale), p.at(scale), torch.Generator().manual_seed(trial.number)
    settings.initialize(model, hps, seed=trial.number)
    optimizer = torch.optim.AdamW(settings.param_groups(model, hps))
    for size in [int(scale.batch)] * int(scale.tokens // scale.batch) + [4096]:
        images, labels = batch(size, data)
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


if __name__ == "__main__":
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=tb.TransferSampler(ladder=ladder, target=target, seed=0))
    study.optimize(objective, n_trials=12)
    print(tb.verify(study, objective, tb.suggest(study)).text)
