"""The command `plan`: how to spend a tuning budget."""

from __future__ import annotations

import enum
import json
import math
from typing import Annotated

import typer

from transfer_bo.cli.common import app, console, once, quiet, scale_of, spoken
from transfer_bo.errors import TransferError

__all__: list[str] = []


class _Unit(enum.StrEnum):
    FLOP = "flop"
    GPU_HOURS = "gpu-hours"
    RUNS = "runs"


@app.command()
@spoken
def plan(
    budget: Annotated[float, typer.Option(help="For tuning, without the final run.")],
    target: Annotated[list[str], typer.Option(help="AXIS=VALUE, once for each axis, e.g. n_params=1e9.")],
    hp: Annotated[
        list[str],
        typer.Option(help="NAME:KIND:LOW:HIGH, e.g. lr:log:1e-4:1e-2; kind log, linear or one_minus."),
    ],
    unit: Annotated[_Unit, typer.Option(help="Of the budget; runs are runs at the target.")] = _Unit.FLOP,
    flops_per_second: Annotated[
        float, typer.Option(help="What one GPU achieves in training, for gpu-hours.")
    ] = 2e14,
    smallest: Annotated[
        list[str] | None, typer.Option(help="AXIS=VALUE of the smallest proxy that trains like the target.")
    ] = None,
    coordinates: Annotated[str, typer.Option(help="raw, or base under a parametrization.")] = "raw",
    rates: Annotated[
        str | None,
        typer.Option(
            help="ALPHA,BETA of loss gap and HP gap over width, as `diagnose` finds: adds the theory."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Which ladder and how many trials, or none: what a budget buys, before anything is trained."""
    quiet()
    from rich.table import Table

    from transfer_bo.plan import make_plan, useful_transfer
    from transfer_bo.scale import Scale, default_cost

    goal = Scale(scale_of(target, "--target"))
    if not flops_per_second > 0:
        raise TransferError(f"--flops-per-second {flops_per_second:g} is not positive; write e.g. 2e14.")
    if unit is _Unit.FLOP and not ({"n_params", "width"} & set(goal) and "tokens" in goal):
        raise TransferError(f"FLOPs of a run need n_params (or width) and tokens, but the target is {goal}.")
    floor = scale_of(smallest or [], "--smallest")
    per = {_Unit.FLOP: 1.0, _Unit.GPU_HOURS: 3600 * flops_per_second, _Unit.RUNS: default_cost(goal)}
    made = make_plan(
        budget * per[unit],
        goal,
        once([_range(text) for text in hp], "--hp"),
        smallest=goal.replace(**floor) if floor else None,
        coordinates=coordinates,
    )
    theory = None if rates is None else useful_transfer(*_rates(rates), hps=len(hp))
    if as_json:
        said = made.to_json() | ({} if theory is None else {"theory": theory})
        typer.echo(json.dumps(said, indent=2))
        return
    out = console()
    out.print(made.advice, soft_wrap=True)
    if theory is not None:
        out.print(
            f"By theory the loss gap falls with the compute F as F^{theory['direct']:.2f} when tuning "
            f"directly, as F^{theory['transfer']:.2f} with proxies whose width grows as "
            f"F^{theory['width']:.2f}: at last, proxies {'gain' if theory['useful'] else 'gain nothing'}.",
            soft_wrap=True,
        )
    best = made.transfer if made.use_proxies else made.direct
    if best is None:
        return
    table = Table("rung", "trials", "cost, target runs", box=None, pad_edge=False)
    for scale, n in zip(best.ladder, best.trials, strict=True):
        shown = ", ".join(f"{axis} {value:.3g}" for axis, value in scale.items())
        table.add_row(shown, str(n), f"{n * default_cost(scale) / made.run_cost:.2g}")
    out.print(table)


def _rates(text: str) -> tuple[float, float]:
    try:
        alpha, beta = (float(part) for part in text.split(","))
    except ValueError:
        raise TransferError(f"--rates {text} is no ALPHA,BETA; write e.g. --rates 0.5,0.4.") from None
    return alpha, beta


def _range(text: str) -> tuple[str, tuple[str, float, float]]:
    parts = text.rsplit(":", 3)
    try:
        name, kind, low, high = parts
        bounds = float(low), float(high)
    except ValueError:
        raise TransferError(
            f"--hp {text} is no NAME:KIND:LOW:HIGH; write e.g. --hp lr:log:1e-4:1e-2."
        ) from None
    if kind not in ("log", "linear", "one_minus") or not -math.inf < bounds[0] < bounds[1] < math.inf:
        raise TransferError(
            f"--hp {text}: the kind is log, linear or one_minus, the ends are finite, the lower one first."
        )
    return name, (kind, *bounds)
