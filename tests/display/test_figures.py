"""The pictures: what they show, in numbers read back from the drawn artists."""

import math

import matplotlib.pyplot
import numpy as np
import pytest
from fake_fit import BOUNDS, DRIFT, LADDER, TARGET, FakeFit, make_runs
from matplotlib.colors import to_rgb

from transfer_bo.display import figures
from transfer_bo.display.figure_style import TARGET_COLOUR
from transfer_bo.display.landscape_figure import draw_landscape
from transfer_bo.records import Outcome, Run


def test_a_panel_and_a_strip_per_hp_most_important_first() -> None:
    """Axes are in the order of importance; each has a log2 axis over the searched range."""
    fit = FakeFit(make_runs())
    figure = draw_landscape(fit)
    strips = figure.axes[1::2]

    assert ["lr", "residual.attn", "lr.embedding", "weight_decay", "init_std"] == [
        a.get_xlabel() for a in strips
    ]
    for axes in strips:
        assert BOUNDS[axes.get_xlabel()] == pytest.approx(axes.get_xlim())
        ticks = np.log2(axes.get_xticks())
        assert ticks.tolist() == np.round(ticks).tolist()
        assert 3 <= len(ticks) <= 4


def test_the_strip_shows_where_the_optimum_goes() -> None:
    """From the cheapest scale on top to the target; the drift of the bowl is read back from the picture."""
    fit = FakeFit(make_runs())
    strip = draw_landscape(fit).axes[1]
    path = strip.lines[0].get_xdata()
    by_cost = sorted(LADDER, key=fit.settings.cost)

    assert [fit.optimum(s)["lr"][0] for s in [*by_cost, TARGET]] == list(path)
    assert 2 * DRIFT == pytest.approx(math.log2(path[-1] / path[0]))  # 32 -> 128 is two doublings of width


def test_rungs_without_a_finished_run_are_not_drawn() -> None:
    """A curve at a scale where nothing was seen would be the prior's alone; the target's is what is asked."""
    runs = [run for run in make_runs(verified=False) if run.scale in LADDER[:2]]
    strip = draw_landscape(FakeFit(runs)).axes[1]

    assert 3 == len(strip.lines[0].get_xdata())


def test_larger_scales_are_darker_and_the_target_stands_out() -> None:
    """The order of scales survives in grey."""
    fit = FakeFit(make_runs(verified=False))
    lines = draw_landscape(fit).axes[0].lines[0::2]
    colours = [to_rgb(line.get_color()) for line in lines]
    grey = [0.299 * r + 0.587 * g + 0.114 * b for r, g, b in colours[:-1]]

    assert sorted(grey, reverse=True) == grey
    assert to_rgb(TARGET_COLOUR) == colours[-1]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_cliffs_do_not_squeeze_the_bowls(sign: float) -> None:
    """The common loss axis holds every optimum, but is cut far below (or above) a cliff of 1e6."""
    fit = FakeFit(make_runs(verified=False))
    curve = fit.curve

    def with_cliff(hp: str, scale: object, n: int = 81) -> tuple[np.ndarray, ...]:
        values, mean, low, high = curve(hp, scale, n)
        mean[-1] = 1e6
        return values, sign * mean, sign * low, sign * high

    fit.curve = with_cliff
    low, high = sorted(sign * bound for bound in draw_landscape(fit, maximize=sign < 0).axes[0].get_ylim())

    assert low < fit.law(TARGET) < fit.law(LADDER[0]) < high < 5


def test_the_prediction_is_drawn_beside_the_measured() -> None:
    """Every measured loss and the interval are in the right panel, each with its number."""
    fit = FakeFit(make_runs())
    measured = [
        ("verify", "suggestion", 2.12),
        ("control", "documented defaults", 2.25),
        ("control", "copied", 2.5),
    ]
    right = figures.draw_prediction(fit, (2.1, 2.0, 2.2), measured).axes[1]
    notes = {text.get_text() for text in right.texts}

    assert {"2.1\n[2, 2.2]", "2.12", "2.25", "2.5"} == notes
    assert 4 == len(right.get_xticks())
    assert right.get_ylim()[0] < 2.0
    assert right.get_ylim()[1] > 2.5


def test_a_skewed_prediction_keeps_the_axis_readable() -> None:
    """The mean of a heavy tail may lie far outside its interval; the axis holds interval and measured."""
    fit = FakeFit(make_runs())
    right = figures.draw_prediction(fit, (3000.0, 2.0, 7.0), [("verify", "suggestion", 2.12)]).axes[1]

    assert right.get_ylim()[1] < 10
    assert "3000\n[2, 7]" == right.texts[0].get_text()


def test_what_is_set_at_the_target_is_marked() -> None:
    """The suggestion minimizes the expected loss, so it need not be where the optimum's marker is."""
    figure = draw_landscape(FakeFit(make_runs()), chosen={"lr": 0.005})
    marks = [line.get_xdata()[0] for line in figure.axes[1].lines if line.get_linestyle() == "--"]

    assert [0.005] == marks


def test_importance_adds_up_per_column() -> None:
    """The heat map's cells are the shares in percent, a column per scale."""
    fit = FakeFit(make_runs())
    cells = np.asarray(figures.draw_importance(fit).axes[0].images[0].get_array())

    assert (5, 5) == cells.shape
    assert np.full(5, 100.0) == pytest.approx(cells.sum(0))


def test_drift_has_a_panel_per_axis() -> None:
    """The fitted mean of each HP is drawn at its place."""
    axes = figures.draw_drift(FakeFit(make_runs()).suggest().drift).axes
    dots = [line.get_xdata()[0] for line in axes[0].lines if line.get_marker() == "o"]

    assert ["width", "depth", "tokens"] == [a.get_title().removeprefix("per doubling of ") for a in axes]
    assert [DRIFT] * 5 == dots


def test_nothing_is_left_in_pyplot() -> None:
    """A report in a server or a notebook must not touch the user's figures."""
    fit = FakeFit(make_runs())
    draw_landscape(fit)
    figures.draw_drift(fit.suggest().drift)

    assert [] == matplotlib.pyplot.get_fignums()


def test_the_divergence_map_shows_the_cliff_first() -> None:
    """Runs diverge above one HP's value: it comes first, its shares rise from 0 to 1, all runs show."""
    rng = np.random.default_rng(0)
    runs = []
    for number in range(60):
        lr, decay = (float(2.0**z) for z in rng.uniform(-8, -2, 2))
        outcome = Outcome.DIVERGED if lr > 2**-4 else Outcome.FINISHED
        runs.append(Run(number, {"weight_decay": decay, "lr": lr}, TARGET, outcome, None))
    figure = figures.draw_divergence(runs, ["weight_decay", "lr"])
    first, second = figure.axes[:2]
    shares = [float(bar.get_paths()[0].vertices[:, 1].max()) for bar in first.collections[:6]]

    assert ["lr", "weight_decay"] == [first.get_xlabel(), second.get_xlabel()]
    assert (0.0, 1.0) == (shares[0], shares[-1])
    assert sorted(shares) == shares
    assert 60 == sum(len(dots.get_offsets()) for dots in first.collections[6:])
