"""What a suggestion from past runs rests on."""

import importlib.resources
import json
import math
from typing import Any

import jsonschema
import numpy as np
import pytest
from source_studies import ASK, DRIFT, best_lr, loss_at, past_runs

import transfer_bo as tb
from transfer_bo.run_table import RunsSuggestion, fit_runs
from transfer_bo.run_table.cleaning import read_rows
from transfer_bo.run_table.published_laws import LAWS, compare
from transfer_bo.run_table.rank_correlation import rank_preservation
from transfer_bo.surrogate.priors import drift_prior, drift_priors
from transfer_bo.synonyms import axis_kind


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    """The documented form of `suggest --json`."""
    text = importlib.resources.files("transfer_bo.run_table").joinpath("suggestion.schema.json").read_text()
    jsonschema.Draft202012Validator.check_schema(json.loads(text))
    return dict(json.loads(text))


@pytest.fixture(scope="module")
def suggestion() -> RunsSuggestion:
    """From 48 runs, eight settings shared by six scales."""
    return tb.suggest_from_runs(past_runs(8, same_settings=True), **ASK)


def test_json_keeps_to_its_schema(suggestion: RunsSuggestion, schema: dict[str, Any]) -> None:
    """Every key of the evidence is documented, and none is missing."""
    plain = json.loads(json.dumps(suggestion.to_json(), allow_nan=False))
    jsonschema.validate(plain, schema)

    assert plain["evidence"].keys() == schema["$defs"]["evidence"]["properties"].keys()
    assert plain["evidence"]["held_out"][0].keys() == set(
        schema["$defs"]["evidence"]["properties"]["held_out"]["items"]["required"]
    )
    del plain["evidence"]["beyond"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(plain, schema)


def test_distance_is_given_in_doublings(suggestion: RunsSuggestion) -> None:
    """1.6e9 parameters are two doublings beyond 4e8, 1.6e10 tokens two beyond 4e9."""
    assert suggestion.evidence["beyond"] == pytest.approx({"n_params": 2.0, "tokens": 2.0})


def test_price_of_not_correcting(suggestion: RunsSuggestion) -> None:
    """Copying the smallest scale's optimum costs what the true bowl says, and more than the suggestion."""
    prices = suggestion.evidence["excess"]
    low, high = prices["copy_base"]["excess"]["interval"]
    best = loss_at(1.6e9, 1.6e10, best_lr(1.6e9), 0.98)
    copied = loss_at(1.6e9, 1.6e10, **prices["copy_base"]["params"]) - best

    assert low < copied < high
    assert prices["suggestion"]["excess"]["mean"] < 0.5 * prices["copy_base"]["excess"]["mean"]


def test_the_largest_scales_are_predicted_from_the_others(suggestion: RunsSuggestion) -> None:
    """Two scales are left out, the most expensive first; each prediction is from cheaper runs and holds."""
    first, second = suggestion.evidence["held_out"]

    assert {"n_params": 4e8, "tokens": 4e9} == first["scale"]
    assert {"n_params": 2e8, "tokens": 4e9} == second["scale"]
    assert (40, 8) == (first["fitted_runs"], first["held_out_runs"])
    # 4e8 x 1e9 is cheaper than 2e8 x 4e9, so it stays.
    assert (32, 8) == (second["fitted_runs"], second["held_out_runs"])
    for fold in (first, second):
        assert fold["nearest"]["inside"]
        assert fold["losses_inside"] > 0.6


def test_held_out_test_notices_a_law_that_breaks() -> None:
    """Where the largest scale does not do as the others, it is seen: its losses lie off their intervals."""
    table = past_runs(8)
    largest = (table["n_params"] == 4e8) & (table["tokens"] == 4e9)
    table.loc[largest, "loss"] *= 1.3
    fold = tb.suggest_from_runs(table, **ASK).evidence["held_out"][0]

    assert fold["losses_inside"] < 0.3


def test_few_runs_leave_nothing_out() -> None:
    """Where too few runs would be left there is no such test."""
    assert [] == tb.suggest_from_runs(past_runs(1), **ASK).evidence["held_out"]


def test_answers_that_rest_on_the_prior_say_so() -> None:
    """Runs at one size say nothing on how lr drifts with size; runs at three sizes do."""
    one_size = past_runs(8)
    one_size = one_size[one_size["n_params"] == 1e8]
    said = tb.suggest_from_runs(one_size, **ASK, held_out=False).warnings
    prior = {"lr": {"n_params": (DRIFT, 0.02), "tokens": (0.0, 0.02)}}
    sure = tb.suggest_from_runs(one_size, **ASK, held_out=False, drift_prior=prior)

    assert any("lr drifts along n_params rests on the prior" in warning for warning in said)
    assert not any("lr drifts" in warning for warning in sure.warnings)
    assert DRIFT == sure.drift["lr"]["n_params"]["prior_mean"]


def test_cliff_moves_a_learning_rate_down() -> None:
    """Where higher learning rates diverged the suggestion lies lower, and the evidence has the shift."""
    table = past_runs(10)
    z = np.log2(table["lr"] / table["n_params"].map(best_lr))
    table.loc[z > 0.5, "loss"] = np.inf
    evidence = tb.suggest_from_runs(table, **ASK, held_out=False).evidence

    assert evidence["cliff_shift"]["lr"] < 0
    assert evidence["cliff_shift"].keys() == {"lr", "beta2"}


def test_axes_under_other_names_have_the_same_prior() -> None:
    """Size called `params` has the prior of `n_params`."""
    table = past_runs(2).rename(columns={"n_params": "params", "tokens": "D"})
    ask = ASK | {"axes": ["params", "D"], "target": {"params": 1.6e9, "D": 1.6e10}}
    drift = tb.suggest_from_runs(table, **ask, held_out=False).drift["lr"]
    mean, sd = drift_prior("lr", "n_params", "raw")

    assert "width" == axis_kind("d_model")
    assert (mean, sd) == (drift["params"]["prior_mean"], drift["params"]["prior_sd"])


def test_a_searched_batch_size_changes_the_prior_under_any_name_of_duration() -> None:
    """With a batch size among the HPs the prior of lr along "steps" is that along "tokens"."""
    table = past_runs(4).rename(columns={"tokens": "steps", "beta2": "batch_size"})
    table["batch_size"] = 2.0 ** (np.arange(len(table)) % 8)
    target = {"n_params": 1.6e9, "steps": 1.6e10}
    free = drift_prior("lr", "tokens", "raw", batch_free=True)
    drift = fit_runs(table, ["n_params", "steps"], {"lr": "log", "batch_size": "log"}, target=target)
    found = drift.projection.drift()["lr"]["steps"]

    assert free == (found["prior_mean"], found["prior_sd"])
    assert free == drift_priors(["lr", "batch_size"], ["steps"], "raw")[0][0]
    assert free != drift_priors(["lr", "eps"], ["steps"], "raw")[0][0]


def test_ranks_of_shared_settings(suggestion: RunsSuggestion) -> None:
    """Bowls that hardly move keep their ranks; without shared settings nothing is claimed."""
    kept = {r["axis"]: r for r in suggestion.evidence["rank_preservation"]}

    assert 8 == kept["tokens"]["shared"]
    assert "kept" == kept["tokens"]["verdict"]
    table = past_runs(4)
    rows = read_rows(table, fit_runs(table, **ASK).columns, maximize=False, seed=0)
    untested = rank_preservation(rows.table, ASK["axes"], list(ASK["hps"]), False)
    assert ["untested", "untested"] == [r["verdict"] for r in untested]


def test_a_fidelity_that_turns_ranks_around_is_warned_of() -> None:
    """An axis along which good settings become bad ones is not trusted silently."""
    table = past_runs(10, same_settings=True)
    short = table["tokens"] == 1e9
    table.loc[short, "loss"] = 5.0 - table.loc[short, "loss"]
    warnings = tb.suggest_from_runs(table, **ASK, held_out=False).warnings

    assert any("tokens = 1e+09 do not rank settings" in warning for warning in warnings)


@pytest.mark.parametrize(
    ("name", "hp", "value"),
    [
        # Each computed by hand at N = 1e9, D = 2e10, C = 6ND = 1.2e20.
        ("Step Law", "lr", 1.79 * 1e9**-0.713 * 2e10**0.307),
        ("Step Law", "batch_tokens", 0.58 * 2e10**0.571),
        ("DeepSeek", "lr", 0.3188 * 1.2e20**-0.125),
        ("DeepSeek", "batch_tokens", 0.2920 * 1.2e20**0.3271),
        ("Porian et al.", "lr", 3.7 * 1e9**-0.36),
        ("Lingle", "lr", 0.01 * 10**-0.48 * 10**0.26),
        ("Lingle", "batch_tokens", 1e5 * 10**0.57),
    ],
)
def test_reference_laws_by_hand(name: str, hp: str, value: float) -> None:
    """Each named law gives the number of its formula; anchored ones move the anchor's optimum."""
    target, anchor = tb.Scale(n_params=1e9, tokens=2e10), tb.Scale(n_params=1e8, tokens=2e9)
    optimum = {"lr": 0.01, "batch_tokens": 1e5}
    found = compare({"lr": 0.002, "batch_tokens": 2e5}, target, anchor, optimum)
    (law,) = [law for law in found if law["law"] == name and law["hp"] == hp]

    assert value == pytest.approx(law["value"], rel=1e-12)
    assert law["source"].startswith("arXiv ") == (name != "Lingle")  # whose laws are in posts
    assert math.log2({"lr": 0.002, "batch_tokens": 2e5}[hp] / value) == pytest.approx(law["octaves"])


def test_laws_that_do_not_apply_are_left_out() -> None:
    """A law about tokens says nothing where size grows too; a batch in sequences is no batch in tokens."""
    target, anchor = tb.Scale(n_params=1e9, tokens=2e10), tb.Scale(n_params=1e8, tokens=2e9)
    said = compare({"lr": 0.002, "batch": 256, "act": "gelu"}, target, anchor, {"lr": 0.01, "batch": 64})
    longer = compare({"lr": 0.002}, target, target.replace(tokens=2e9), {"lr": 0.01})

    assert {"lr"} == {law["hp"] for law in said}
    assert not any("Bjorck" in law["law"] for law in said)
    assert 2 == sum("Bjorck" in law["law"] for law in longer)
    assert [] == compare({"dropout": 0.1}, target, anchor, {})
    assert {"lr", "batch"} == {law.hp for law in LAWS}


def test_reference_laws_are_no_priors() -> None:
    """The prior does not come from the laws: the two modules share no number."""
    assert not any(drift_prior("lr", axis, "raw")[0] == -0.713 for axis in ("n_params", "tokens"))
    assert not any(drift_prior(hp, "tokens", "raw")[0] in (0.307, 0.571) for hp in ("lr", "batch"))
