"""The tables of priors and how they are looked up."""

from __future__ import annotations

import ast
import inspect
import math
import runpy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from transfer_bo import Scale
from transfer_bo.dimension import Dimension
from transfer_bo.surrogate import priors
from transfer_bo.surrogate.coordinates import Coordinates
from transfer_bo.surrogate.landscape import DriftPrior, Landscape

HPS = ["lr", "peak_lr", "batch_tokens", "weight_decay", "beta2", "dropout", "lr.embedding"]
AXES = ["n_params", "tokens", "width", "depth", "batch", "anything"]


@given(st.sampled_from(HPS), st.sampled_from(AXES), st.sampled_from(["raw", "base"]), st.booleans())
def test_every_drift_has_a_proper_prior(hp: str, axis: str, coordinates: str, batch_free: bool) -> None:
    """A finite mean and a positive sd; in base coordinates none is expected."""
    mean, sd = priors.drift_prior(hp, axis, coordinates, batch_free=batch_free)

    assert math.isfinite(mean)
    assert 0 < sd < 1
    assert coordinates == "raw" or mean == 0.0


@given(st.sampled_from(HPS), st.sampled_from(AXES), st.floats(-1, 1), st.floats(0.01, 1))
def test_the_users_own_prior_replaces_the_table(hp: str, axis: str, mean: float, sd: float) -> None:
    """For this HP along this axis, and for no other."""
    own = {hp: {axis: (mean, sd)}}

    assert (mean, sd) == priors.drift_prior(hp, axis, "raw", own)
    for other in AXES:
        if other != axis:
            assert priors.drift_prior(hp, other, "raw", own) == priors.drift_prior(hp, other, "raw")


@given(st.lists(st.sampled_from(AXES), min_size=1, max_size=4, unique=True), st.sampled_from(HPS))
def test_correlations_of_drifts_are_proper(axes: list[str], hp: str) -> None:
    """Symmetric, one on the diagonal, positive definite."""
    correlation = torch.tensor(priors.drift_correlation(hp, axes, "raw"), dtype=torch.double)

    assert torch.equal(correlation, correlation.T)
    assert bool((correlation.diagonal() == 1).all())
    assert float(torch.linalg.eigvalsh(correlation).min()) > 0


def test_drifts_are_those_that_the_sources_give() -> None:
    """By the rule of `studies/priors`, from the entries that are listed there."""
    pools = runpy.run_path(str(Path(__file__).parents[2] / "studies" / "priors" / "pool.py"))["pools"]()
    table, correlation = priors.RAW_DRIFT, priors.RAW_DRIFT_CORRELATION

    def pooled(hp: str, exponent: str) -> tuple[float, float]:
        mean, sd = pools[hp].of(exponent)
        return round(mean, 2), round(sd, 2)

    assert pooled("lr", "n_params") == table["lr", "n_params"]
    assert pooled("lr", "tokens, batch fixed") == table["lr", "tokens"]
    assert pooled("lr", "tokens, batch free") == priors.RAW_DRIFT_BATCH_FREE["lr", "tokens"]
    assert pooled("lr", "batch") == table["lr", "batch"]
    assert pooled("batch", "n_params") == table["batch", "n_params"]
    assert pooled("batch", "tokens, batch free") == table["batch", "tokens"]
    for hp in ("lr", "batch"):
        found = pools[hp].correlation("n_params", "tokens, batch free")
        assert round(found, 1) == correlation[hp, frozenset({"n_params", "tokens"})]


def test_the_mixing_of_every_log_lies_in_its_prior() -> None:
    """ζ as fitted to public logs, in the prior's 90% interval."""
    mean, sd = priors.LAW_MIXING
    studies = Path(__file__).parents[2] / "studies"
    fitted = pd.read_csv(studies / "priors" / "loss_law.csv")["ζ"]

    assert len(fitted) == 6
    assert (np.abs(np.log(fitted) - mean) < 1.645 * sd).all()


@pytest.mark.parametrize("name", ["lr.embedding", "config.lr.embedding", "residual.mlp"])
def test_a_multiplier_of_the_learning_rate_has_no_bowl_of_a_learning_rate(name: str) -> None:
    """It is as flat as other HPs, and has no cliff of its own."""
    dimensions = [Dimension("lr", "log", 2**-12, 2**-4, 2**-8), Dimension(name, "log", 1 / 8, 8.0, 1.0)]
    coordinates = Coordinates(dimensions, Scale(width=1), ["width"])
    shape = Landscape(coordinates, DriftPrior.from_tables(["lr", name], ["width"], "base"), level=0.0)
    expected = priors.CURVATURE["residual"] if name.startswith("residual") else priors.CURVATURE_OTHER

    def prior(block: str) -> list[tuple[float, float]]:
        part = shape.part(block)
        return list(zip(shape.mean[part].tolist(), shape.sd[part].tolist(), strict=True))

    assert prior("lnc") == [priors.CURVATURE["lr"], pytest.approx(expected)]
    assert prior("kappa") == [priors.ASYMMETRY["lr"], priors.ASYMMETRY_OTHER]


def test_a_multiplier_does_not_drift_with_its_kind() -> None:
    """What it multiplies drifts already; a batch size that is searched moves the learning rate's."""
    assert priors.RAW_DRIFT_OTHER == priors.drift_prior("lr.embedding", "tokens", "raw")
    assert priors.RAW_DRIFT["lr", "tokens"] == priors.drift_prior("lr", "tokens", "raw")
    [[free], _] = priors.drift_priors(["lr", "batch"], ["tokens"], "raw")
    assert priors.RAW_DRIFT_BATCH_FREE["lr", "tokens"] == free


def test_without_a_default_only_the_range_is_known() -> None:
    """That of a uniform distribution; with one a quarter for a learning rate, a fifth for its multipliers."""
    assert priors.optimum_spread("lr", has_default=False) == pytest.approx(12**-0.5)
    assert priors.optimum_spread("lr", has_default=True) == 1 / 4
    assert priors.optimum_spread("lr.embedding", has_default=True) == 1 / 5
    assert priors.optimum_spread("config.lr.embedding", has_default=True) == 1 / 5
    assert priors.optimum_spread("residual.mlp", has_default=True) == 1 / 12
    assert priors.optimum_spread("eps", has_default=True) == 1 / 12


def test_the_landscape_takes_its_priors_from_the_tables() -> None:
    """Mean and sd of θ, block by block, for a learning rate, a batch size and a category."""
    dimensions = [
        Dimension("batch", "log", 1.0, 256.0, 16.0),
        Dimension("lr", "log", 2**-12, 2**-4, 2**-8),
        Dimension("kind", "categorical", choices=("a", "b")),
    ]
    coordinates = Coordinates(dimensions, Scale(width=1, batch=1), ["width", "batch"])
    drift_prior = DriftPrior.from_tables(["batch", "lr"], ["width", "batch"], "raw")
    shape = Landscape(coordinates, drift_prior, level=0.5)

    def prior(name: str) -> list[tuple[float, float]]:
        pairs = zip(shape.mean[shape.part(name)].tolist(), shape.sd[shape.part(name)].tolist(), strict=True)
        return [(round(mean, 6), round(sd, 6)) for mean, sd in pairs]

    assert [(0.5, priors.LAW_LEVEL_SD)] == prior("l0")
    assert [priors.IRREDUCIBLE_LOGIT] == prior("e")
    assert [(round(priors.LAW_MIXING[0], 6), priors.LAW_MIXING[1])] == prior("lnzeta")
    assert [priors.LAW_EXPONENT_OTHER, priors.LAW_EXPONENT["batch"]] == prior("alpha")
    assert [priors.CURVATURE["batch"], priors.CURVATURE["lr"]] == prior("lnc")
    assert [priors.ASYMMETRY_OTHER, priors.ASYMMETRY["lr"]] == prior("kappa")
    assert [(0.0, 8 / 4), (0.0, 8 / 4)] == prior("u")
    assert [priors.COUPLING[frozenset({"lr", "batch"})]] == prior("N")
    assert [(0.0, priors.CATEGORY_EFFECT_SD)] * 2 == prior("w")
    assert priors.RAW_DRIFT["lr", "width"] == prior("beta")[2]


def test_every_constant_has_its_reason() -> None:
    """Each assignment is followed by a docstring."""
    body = ast.parse(inspect.getsource(priors)).body
    without = [
        ast.unparse(node)
        for node, after in zip(body, [*body[1:], None], strict=True)
        if isinstance(node, ast.AnnAssign | ast.Assign)
        and not (isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant))
    ]

    assert {"__all__", "Normal", "LogNormal"} == {line.partition(" =")[0] for line in without}
