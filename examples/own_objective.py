"""Your own objective: tune on small widths, project to a large one, check with one full-size run.

Run it: .venv/bin/python examples/own_objective.py (about a minute on one core).

The model is a two-layer network with a learning rate as torch has it ("raw" coordinates), so the best
learning rate moves with width. The sampler learns by how much.
"""

import optuna
import torch

import transfer_bo as tb

ladder = tb.Ladder(tb.Scale(width=w, tokens=t) for w, t in [(16, 8e3), (32, 8e3), (64, 8e3), (32, 32e3)])
target = tb.Scale(width=512, tokens=128e3)
sampler = tb.TransferSampler(ladder=ladder, target=target, coordinates="raw", seed=0)


@tb.objective
def objective(trial: optuna.Trial) -> float:
    """Train at the proposed scale with the proposed HPs; return the loss on held-out data."""
    scale = ladder.suggest(trial)
    lr = trial.suggest_float("lr", 1e-4, 1.0, log=True)
    momentum = 1 - trial.suggest_float("one_minus_beta1", 0.02, 0.5, log=True)
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(16, generator=generator) / 4
    torch.manual_seed(trial.number)
    model = torch.nn.Sequential(
        torch.nn.Linear(16, scale.width), torch.nn.ReLU(), torch.nn.Linear(scale.width, 1)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(momentum, 0.95))

    def loss(rows: int) -> torch.Tensor:
        x = torch.randn(rows, 16, generator=generator)
        return ((model(x).squeeze(-1) - torch.sin(3 * x @ teacher)) ** 2).mean()

    for _ in range(int(scale.tokens) // 64):
        optimizer.zero_grad()
        loss(64).backward()
        optimizer.step()
    with torch.no_grad():
        return loss(4096).item()


if __name__ == "__main__":
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=sampler)
    study.optimize(objective, n_trials=30)
    suggestion = tb.suggest(study)
    print("set at the target:", suggestion.params)
    print("90% intervals:    ", suggestion.interval(0.9))
    print("drift of lr:      ", suggestion.drift["lr"])
    print(tb.verify(study, objective, suggestion).text)
