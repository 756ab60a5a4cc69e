"""How a tuning budget should be spent."""

import json
import math

import pytest
from typer.testing import CliRunner

import transfer_bo as tb
from transfer_bo.cli import app
from transfer_bo.plan import MAX_TRIALS, make_plan, useful_transfer
from transfer_bo.scale import default_cost

TARGET = tb.Scale(n_params=1e9, tokens=2e10)
HPS = {"lr": ("log", 1e-4, 1e-2), "batch_tokens": ("log", 3e4, 4e6)}
RUN = default_cost(TARGET)


def test_rates_of_the_theory() -> None:
    """The exponents are those of the theorem, and transfer is useful where β > α/2, and only there."""
    fast = useful_transfer(alpha=0.5, beta=0.5, hps=2)
    slow = useful_transfer(alpha=1.0, beta=0.25, hps=2)
    edge = useful_transfer(alpha=1.0, beta=0.5, hps=2)

    assert (-1.0 / 5.0, -1.0 / 4.0, True) == (fast["direct"], fast["transfer"], fast["useful"])
    assert (-2.0 / 6.0, -0.5 / 2.5, False) == (slow["direct"], slow["transfer"], slow["useful"])
    assert edge["direct"] == pytest.approx(edge["transfer"])
    assert not edge["useful"]


def test_a_plan_keeps_to_its_budget() -> None:
    """Trials cost no more than the budget and stay under the limit; rungs are smaller than the target."""
    for share in (0.3, 2.0, 50.0):
        plan = make_plan(share * RUN, TARGET, HPS)
        for tuning in filter(None, (plan.transfer, plan.direct)):
            assert tuning.cost <= share * RUN
            assert 1 <= sum(tuning.trials) <= MAX_TRIALS
        assert plan.transfer is not None
        assert all(default_cost(rung) < RUN for rung in plan.transfer.ladder)


def test_more_budget_leaves_less_excess() -> None:
    """The excess loss expected to remain falls with the budget and is never more than without tuning."""
    plans = [make_plan(share * RUN, TARGET, HPS) for share in (0.1, 1.0, 10.0)]
    excess_losses = [plan.transfer.excess_loss for plan in plans if plan.transfer]

    assert sorted(excess_losses, reverse=True) == excess_losses
    assert excess_losses[0] < plans[0].untuned


def test_proxies_where_direct_tuning_is_not_affordable_and_not_where_it_is() -> None:
    """With half a run's compute proxies are advised, with plenty they are not."""
    assert make_plan(0.5 * RUN, TARGET, HPS).use_proxies
    assert make_plan(0.5 * RUN, TARGET, HPS).direct is None

    plenty = make_plan(100 * RUN, TARGET, HPS)
    assert not plenty.use_proxies
    assert "not worth it" in plenty.advice


def test_a_budget_for_nothing_says_so() -> None:
    """Too little for any proxy: no plan, and the advice is not to tune."""
    plan = make_plan(1e-9 * RUN, TARGET, HPS)

    assert plan.transfer is None
    assert plan.direct is None
    assert "no tuning pays" in plan.advice


def test_command_line_in_three_units() -> None:
    """The same budget as FLOPs, GPU-hours and target runs gives the same plan."""
    common = [
        "plan",
        "--target",
        "n_params=1e9",
        "--target",
        "tokens=2e10",
        "--hp",
        "lr:log:1e-4:1e-2",
        "--json",
    ]
    hours = 2 * RUN / 3600 / 1e14
    said = [
        CliRunner().invoke(app, [*common, *budget])
        for budget in (
            ["--budget", str(2 * RUN)],
            ["--budget", str(hours), "--unit", "gpu-hours", "--flops-per-second", "1e14"],
            ["--budget", "2", "--unit", "runs"],
        )
    ]
    plans = [json.loads(result.stdout) for result in said]

    assert plans[0]["transfer"]["trials"] == plans[1]["transfer"]["trials"] == plans[2]["transfer"]["trials"]
    assert math.isclose(plans[0]["run_cost"], RUN)
    flags = [*common[:-1], "--budget", "2", "--unit", "runs", "--rates", "1.0,0.25"]
    shown = CliRunner().invoke(app, flags).stdout
    assert "excess loss at the target" in shown
    assert "F^-0.40 when tuning directly" in shown  # -2α / (hα + 2r) with one HP and r = 2
    assert "proxies gain nothing" in shown


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (
            ["--budget", "-1", "--target", "n_params=1e9", "--hp", "lr:log:1e-4:1e-2", "--unit", "runs"],
            "is -6",
        ),
        (
            ["--budget", "nan", "--target", "n_params=1e9", "--hp", "lr:log:1e-4:1e-2", "--unit", "runs"],
            "nan",
        ),
        (["--budget", "1e20", "--target", "epochs=4", "--hp", "lr:log:1e-4:1e-2"], "tokens"),
        (["--budget", "2", "--unit", "runs", "--target", "n_params", "--hp", "lr:log:1e-4:1e-2"], "n_params"),
        (["--budget", "2", "--unit", "runs", "--target", "n_params=1e9", "--hp", "lr:1e-4:1e-2"], "lr:1e-4"),
        (["--budget", "2", "--unit", "runs", "--target", "n_params=1e9", "--hp", "lr:log:0:1"], "low"),
        (["--budget", "2", "--unit", "runs", "--target", "n_params=1e9", "--hp", "lr:log:2:1"], "lr:log:2:1"),
        (["--budget", "2", "--unit", "runs", "--target", "n_params=1e9", "--hp", "lr:log:2:inf"], "inf"),
        (
            [
                *["--budget", "2", "--unit", "runs", "--target", "n_params=1e9", "--hp", "lr:log:1:2"],
                *["--rates", "0.5"],
            ],
            "--rates 0.5",
        ),
        (
            ["--budget", "2", "--target", "n_params=1e9", "--target", "n_params=2", "--hp", "a:log:1:2"],
            "twice",
        ),
        (
            [
                *["--budget", "2", "--unit", "gpu-hours", "--target", "n_params=1e9", "--hp", "lr:log:1:2"],
                *["--flops-per-second", "0"],
            ],
            "--flops-per-second 0",
        ),
        (
            [
                *["--budget", "2", "--unit", "runs", "--target", "n_params=1e9", "--hp", "lr:log:1:2"],
                *["--smallest", "n_params=2e9"],
            ],
            "not smaller",
        ),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], word: str) -> None:
    """Whatever is wrong, it is named in one line, with exit code 2."""
    result = CliRunner().invoke(app, ["plan", *arguments])

    assert 2 == result.exit_code
    assert word in result.stderr
    assert 1 == len(result.stderr.strip().splitlines())
