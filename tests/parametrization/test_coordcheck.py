"""The coordinate check passes for the right table and fails for wrong ones, where they are wrong."""

import dataclasses
from pathlib import Path

import pytest
import torch

from transfer_bo.errors import ParametrizationError
from transfer_bo.parametrization import COMPLETE_D_P, Power, Role
from transfer_bo.parametrization.coordcheck import coordinate_check
from transfer_bo.parametrization.tables import find_rule
from transfer_bo.scale import Scale
from transfer_bo.study_file import load_study_file
from transfer_bo.training.model import build_transformer

BASE = Scale(width=32, depth=4, batch=4, tokens=100)
WIDER = {"axes": ("width",), "factors": (1, 4), "hps": {"lr": 2**-8}}
# ε as large as the embedding's gradients, so that how it scales matters. At 1e-2 the final norm fails: its
# gradients fall with the width too, but the table keeps its ε.
LARGE_EPS = {**WIDER, "hps": {"lr": 2**-8, "eps": 3e-3}}
# In a base of two blocks, half of the stream that enters the last one does not learn.
DEEPER = {"axes": ("depth",), "factors": (1, 4), "hps": {"lr": 2**-8}}


def build(scale):
    """Small heads, so that the base can be narrow."""
    return build_transformer(scale, vocab_size=32, head_size=8)


def _with(name, change):
    rows = {role: change(role, row) for role, row in COMPLETE_D_P.rows.items()}
    return dataclasses.replace(COMPLETE_D_P, name=name, rows=rows)


EMBEDDING_EPS = _with(
    "no embedding ε",
    lambda role, row: dataclasses.replace(row, eps=Power()) if role is Role.INPUT_EMBEDDING else row,
)
NO_DEPTH_LR = _with(
    "no depth lr",
    lambda role, row: dataclasses.replace(row, lr=dataclasses.replace(row.lr, depth=0.0, depth_alpha=0.0)),
)


@pytest.mark.parametrize(
    ("rule", "alpha", "options"),
    [
        ("complete_d_p", 1.0, WIDER),
        ("complete_d_p", 1.0, LARGE_EPS),
        ("complete_d_p", 1.0, DEEPER),
        ("complete_d_p", 0.5, DEEPER),
    ],
)
def test_right_tables_pass(rule, alpha, options):
    """Complete(d)P passes over width and depth, at both ends of α."""
    check = coordinate_check(build, BASE, rule, alpha, **options)

    assert check.passed, check.table().to_string()


@pytest.mark.parametrize(
    ("rule", "alpha", "options", "failing"),
    [
        ("sp", 1.0, WIDER, {("q", "own"): "grows", ("up", "own"): "grows", ("embedding", "own"): "ok"}),
        (EMBEDDING_EPS, 1.0, LARGE_EPS, {("embedding", "own"): "vanishes", ("q", "own"): "ok"}),
        (NO_DEPTH_LR, 0.5, DEEPER, {("attn_norm", "own"): "grows", ("embedding", "own"): "ok"}),
        ("mup", 1.0, DEEPER, {("attn_norm", "own"): "grows", ("blocks", "stack"): "grows"}),
    ],
)
def test_wrong_tables_fail(rule, alpha, options, failing):
    """SP, an unscaled embedding ε and a missing depth factor fail, at the layers that they are wrong for."""
    check = coordinate_check(build, BASE, rule, alpha, **options)
    verdicts = {(growth.module, growth.measure): growth.verdict for growth in check.growths}

    assert not check.passed
    assert failing.items() <= verdicts.items(), check.table().to_string()
    assert check.failures[0].verdict != "ok"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "alpha", "hps", "failing"),
    [
        ("complete_d_p", 1.0, {}, set()),
        ("complete_d_p", 0.5, {}, set()),
        ("complete_d_p", 1.0, {"eps": 3e-3}, set()),
        ("sp", 1.0, {}, {"q", "v", "up", "down", "blocks"}),
        ("sp_embedding_lr", 1.0, {}, {"embedding", "q", "v", "up", "down", "blocks"}),
        (EMBEDDING_EPS, 1.0, {"eps": 3e-3}, {"embedding"}),
        (NO_DEPTH_LR, 0.5, {}, {"attn_norm", "q_norm", "mlp_norm"}),
        ("mup", 1.0, {}, {"attn_norm", "q", "v", "o", "up", "down", "blocks"}),
    ],
)
def test_the_demos_study(rule, alpha, hps, failing):
    """With the settings of `transfer-bo coord-check studies/sotu_lm.toml`, right tables alone pass."""
    study = load_study_file(Path(__file__).parents[2] / "studies" / "sotu_lm.toml")
    base, hps = study.base.replace(depth=4), {**study.hp_space.defaults, **hps}
    check = coordinate_check(build_transformer, base, rule, alpha, hps=hps, factors=(1, 2, 4))

    assert (not failing) == check.passed, check.table().to_string()
    assert failing <= {growth.module for growth in check.failures}, check.table().to_string()


def test_table_and_plot(tmp_path):
    """There is a row per axis and kind of layer, and a picture."""
    check = coordinate_check(build, BASE, factors=(1, 2), seeds=(0, 1), steps=1)
    table = check.table()
    check.plot().savefig(tmp_path / "check.png")

    assert {"width", "depth"} == set(table.axis)
    assert {"embedding", "q", "blocks", "unembedding"} <= set(table.module)
    assert {"total", "own", "stack"} == set(table.measure)
    assert ["own"] * 2 == list(table[table.module == "unembedding"].measure)
    assert (table.low <= table.exponent).all()
    assert (tmp_path / "check.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"factors": (1,)}, "1 size "),
        ({"axes": ("batch",)}, "'batch'"),
        ({"inputs": (torch.ones(2, 3),)}, "inputs="),
    ],
)
def test_what_cannot_be_checked(options, named):
    """Too few sizes, an axis that is neither width nor depth, or inputs that do not fit are an error."""
    with pytest.raises(ParametrizationError) as error:
        coordinate_check(build, BASE, **options)

    assert named in str(error.value)


@pytest.mark.slow  # trains models of two sizes for each optimizer
@pytest.mark.parametrize("optimizer", ["muon", "shampoo", "adamh", "sgd"])
def test_tables_of_other_optimizers_pass(optimizer):
    """With muP's table all layers learn alike; without it, or with one exponent of it moved, they do not."""
    options = {**WIDER, "hps": {"lr": 0.5 if optimizer == "sgd" else 2**-8}, "seeds": (0, 1, 2)}
    rule = find_rule("mup", optimizer)
    row = rule.rows[Role.HIDDEN_WEIGHT]
    moved = dataclasses.replace(row, lr=row.lr * Power(width=0.5))
    wrong = dataclasses.replace(rule, name="moved", rows={**rule.rows, Role.HIDDEN_WEIGHT: moved})
    right, broken = (coordinate_check(build, BASE, each, **options) for each in (rule, wrong))

    assert right.passed, right.table().to_string()
    assert {"up", "down"} & {growth.module for growth in broken.failures if growth.verdict == "grows"}
