"""A suggestion as text, HTML and figure."""

from __future__ import annotations

import io
from html.parser import HTMLParser
from typing import Any

import numpy as np
import optuna
import pytest
from rich.console import Console

from transfer_bo import Scale, Suggestion
from transfer_bo.display.suggestion_text import searched_ranges, suggestion_parts
from transfer_bo.projection import Baseline, PredictedLoss


@pytest.fixture
def suggestion() -> Suggestion:
    """Two numeric HPs, one categorical, one warning."""
    rng = np.random.default_rng(0)
    return Suggestion(
        target=Scale(width=1024, tokens=2e9),
        params={"lr": 0.0123, "lr[<b>]": 2.0, "activation": "gelu"},
        optimum={
            "lr": np.sort(np.exp2(rng.normal(-6.3, 0.5, 400))),
            "lr[<b>]": np.sort(np.exp2(rng.normal(1, 2, 400))),
        },
        predicted_loss=PredictedLoss(np.sort(rng.normal(2.1, 0.02, 400))),
        drift={},
        warnings=["The target lies 4.2 doublings of tokens beyond the largest finished run." * 2],
        provenance={},
    )


def test_print_shows_what_to_set_and_how_sure(suggestion: Suggestion) -> None:
    """Each HP with its interval, the loss, the notes; at most 80 columns, no markup lost."""
    lines = str(suggestion).splitlines()
    text = " ".join(lines)
    low, high = suggestion.interval()["lr"]

    assert "Suggestion for width 1024, tokens 2G" == lines[0]
    assert max(map(len, lines)) <= 80
    assert ["lr", "0.0123", f"{low:.3g}", "to", f"{high:.3g}"] == lines[2].split()
    assert "lr[<b>]" in text
    assert "gelu" in text
    assert ["loss", f"{suggestion.predicted_loss.mean:.5g}"] == lines[5].split()[:2]
    assert "Note: The target lies" in text


def test_what_is_known_beyond_the_values_is_said(suggestion: Suggestion) -> None:
    """HPs that the runs do not determine, the chance to diverge, and the settings it was compared with."""
    known = {
        "undetermined": ("lr",),
        "divergence_probability": 0.02,
        "baselines": {
            "defaults": Baseline({"lr": 0.1}, 0.2, 0.123456, 0.9, False),
            "best run copied": Baseline({"lr": 0.01}, 0.01, 0.001, 0.6, True),
        },
    }
    for name, value in known.items():
        object.__setattr__(suggestion, name, value)
    text = str(suggestion)
    prose = " ".join(text.split())

    assert ["lr", "0.0123", "undetermined"] == text.splitlines()[2].split()
    assert "diverges: 2%" in text
    assert "defaults +0.12 (worse with a probability of 90%), best run copied +0.001" in prose
    assert "within the noise of one run" in prose


def test_a_copy_of_the_best_run_is_called_one(suggestion: Suggestion) -> None:
    """Nothing is compared with itself."""
    copied = Baseline(suggestion.params, 0.01, 0.0, 0.5, True)
    object.__setattr__(suggestion, "baselines", {"best run copied": copied})

    prose = " ".join(str(suggestion).split())

    assert "This is a copy of the best run" in prose
    assert "within the noise" not in prose
    assert "beside the suggestion" not in prose


def test_notebooks_show_a_table(suggestion: Suggestion) -> None:
    """The same as HTML, names escaped."""
    html = suggestion._repr_html_()
    cells: list[str] = []

    class Parser(HTMLParser):
        def handle_data(self, data: str) -> None:
            cells.append(data)

    Parser().feed(html)

    assert {"lr", "lr[<b>]", "0.0123", "activation", "gelu"} <= set(cells)
    assert "<b>]" not in html.replace("&lt;b&gt;", "")


def test_a_figure_has_a_panel_for_each_numeric_hp_and_the_loss(suggestion: Suggestion) -> None:
    """The suggested value stands in each panel; HPs with the widest interval come first."""
    axes = [panel for panel in suggestion.plot().axes if panel.axison]
    marks = [panel.lines[0].get_xdata()[0] for panel in axes]

    assert [2.0, 0.0123, suggestion.predicted_loss.mean] == marks
    assert "loss" in axes[-1].get_title()


def test_searched_ranges_stand_beside_the_values(suggestion: Suggestion) -> None:
    """Of a study the range of each HP is known."""
    study = optuna.create_study()
    study.enqueue_trial({"lr": 0.1})
    study.optimize(lambda trial: trial.suggest_float("lr", 1e-3, 0.5, log=True), n_trials=1)
    shown = io.StringIO()
    parts: list[Any] = suggestion_parts(suggestion, ranges=searched_ranges(study))
    Console(file=shown, width=80).print(parts[0])

    assert ["0.001", "to", "0.5"] == shown.getvalue().splitlines()[2].split()[-3:]
