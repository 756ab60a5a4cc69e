"""The command `plan`: how to spend a tuning budget."""

from __future__ import annotations

import enum
import json
from typing import TYPE_CHECKING, Annotated

import typer

from transfer_bo.cli.common import JsonOption, app, output_console, reports_errors, silence_libraries
from transfer_bo.cli.parsing import parse_hp_ranges, parse_rates, parse_scale
from transfer_bo.errors import BudgetError, ScaleError
from transfer_bo.quantities import counted, parse_number
from transfer_bo.scale import Scale, default_cost

if TYPE_CHECKING:
    from rich.console import Console

    from transfer_bo.plan import Plan

__all__: list[str] = []

SECONDS_PER_HOUR = 3600.0
"""Seconds in an hour, for budgets in GPU-hours."""
FEWEST_FLOPS = 1e9
"""A budget below this without a unit is no number of FLOPs: not even one step of a tiny model."""


class _Unit(enum.StrEnum):
    FLOP = "flop"
    GPU_HOURS = "gpu-hours"
    RUNS = "runs"


@app.command()
@reports_errors
def plan(
    budget: Annotated[
        str, typer.Option(help="Compute for tuning, without the final run, e.g. 4 or 1e21.", metavar="NUMBER")
    ],
    target: Annotated[
        list[str], typer.Option(help="One axis of the target, e.g. n_params=7B.", metavar="AXIS=VALUE")
    ],
    hp: Annotated[
        list[str],
        typer.Option(help="E.g. lr:log:1e-4:1e-2; log, linear or one_minus.", metavar="NAME:KIND:LOW:HIGH"),
    ],
    unit: Annotated[
        _Unit | None,
        typer.Option(help="Unit of the budget: FLOPs, GPU-hours, or runs at the target."),
    ] = None,
    flops_per_second: Annotated[
        str, typer.Option(help="What one GPU achieves in training, for gpu-hours.", metavar="NUMBER")
    ] = "2e14",
    smallest: Annotated[
        list[str] | None,
        typer.Option(help="Smallest proxy that trains like the target.", metavar="AXIS=VALUE"),
    ] = None,
    coordinates: Annotated[str, typer.Option(help="raw, or base under a parametrization.")] = "raw",
    rates: Annotated[
        str | None,
        typer.Option(help="Rates that `diagnose` found: adds the theory.", metavar="ALPHA,BETA"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Tell which ladder and how many trials a budget buys.

    Nothing is trained. Options that take AXIS=VALUE, and --hp, may be repeated.
    """
    goal = Scale(parse_scale(target, "--target"))
    hps = parse_hp_ranges(hp)
    cheapest = parse_scale(smallest or [], "--smallest")
    exponents = None if rates is None else parse_rates(rates)
    speed = parse_number(flops_per_second, "--flops-per-second")
    if speed <= 0:
        raise BudgetError(f"--flops-per-second {flops_per_second} is not positive; write e.g. 2e14.")
    flops = _budget_in_flops(parse_number(budget, "--budget"), unit, goal, speed)

    silence_libraries()
    from transfer_bo.plan import make_plan, useful_transfer

    made = make_plan(
        flops,
        goal,
        hps,
        smallest=goal.replace(**cheapest) if cheapest else None,
        coordinates=coordinates,
    )
    theory = None if exponents is None else useful_transfer(*exponents, hps=len(hps))
    if as_json:
        typer.echo(json.dumps(made.to_json() | ({} if theory is None else {"theory": theory}), indent=2))
        return

    console = output_console()
    console.print(made.advice, soft_wrap=True)
    if theory is not None:
        console.print(
            f"By theory the loss gap falls with the compute F as F^{theory['direct']:.2f} when tuning "
            f"directly, as F^{theory['transfer']:.2f} with proxies whose width grows as "
            f"F^{theory['width']:.2f}: in the limit, proxies gain{'' if theory['useful'] else ' nothing'}.",
            soft_wrap=True,
        )
    _show_ladder(made, console)


def _budget_in_flops(budget: float, unit: _Unit | None, target: Scale, flops_per_second: float) -> float:
    """The budget in the unit of `default_cost`; without a unit, a small number is one of target runs.

    Raises:
        ScaleError: If a budget in FLOPs is given for a target whose FLOPs are unknown.
    """
    has_flops = bool({"n_params", "width"} & set(target)) and "tokens" in target
    if unit is None:
        unit = _Unit.FLOP if budget >= FEWEST_FLOPS else _Unit.RUNS
        if unit is _Unit.RUNS:
            typer.echo(
                f"Note: --budget {budget:g} is read as {counted(budget, 'run')} at the target; "
                "for GPU-hours or FLOPs add --unit.",
                err=True,
            )

    if unit is _Unit.RUNS:
        return budget * default_cost(target)
    if unit is _Unit.GPU_HOURS:
        return budget * (SECONDS_PER_HOUR * flops_per_second)
    if not has_flops:
        raise ScaleError(f"FLOPs of a run need n_params (or width) and tokens, but the target is {target}.")
    return budget


def _show_ladder(made: Plan, console: Console) -> None:
    from transfer_bo.display.tables import make_table
    from transfer_bo.display.text import scale_text

    best = made.transfer if made.use_proxies else made.direct
    if best is None:
        return
    rows = [
        [scale_text(scale), n, n * default_cost(scale) / made.run_cost]
        for scale, n in zip(best.ladder, best.trials, strict=True)
    ]
    console.print(make_table(["rung", "trials", "cost, target runs"], rows, digits=2))
