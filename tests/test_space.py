"""The HP space."""

from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfer_bo.errors import SearchSpaceError
from transfer_bo.space import HP, KINDS, Space, is_multiplier, split_name


def test_names_are_kind_or_kind_dot_group() -> None:
    """The part after the first dot is the group."""
    assert ("lr", None) == split_name("lr")
    assert ("lr", "embedding") == split_name("lr.embedding")
    assert ("lr", "layers.0") == split_name("lr.layers.0")
    with pytest.raises(SearchSpaceError, match="momentum"):
        split_name("momentum.attn")


def test_multipliers_are_told_from_other_names_with_a_dot() -> None:
    """A user's own "optimizer.momentum" multiplies nothing."""
    names = ("lr", "lr.q", "lr.@0.5", "optimizer.momentum", "lr.")

    assert [False, True, True, False, False] == [is_multiplier(name) for name in names]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_its_default_in_range(kind: str) -> None:
    """What an HP is when nobody sets it lies inside where one would search it."""
    plain, grouped = HP.of(kind), HP.of(f"{kind}.attn")

    assert KINDS[kind].default == plain.default
    assert plain.low < plain.default < plain.high
    assert 1.0 == grouped.default
    assert pytest.approx(1.0) == grouped.low * grouped.high


@given(st.floats(1e-6, 1e3), st.floats(1.01, 1e4))
def test_a_default_is_moved_into_a_given_range(low: float, factor: float) -> None:
    """A user who gives a range only gets a default inside it."""
    hp = HP.of("lr", low=low, high=low * factor)

    assert hp.low <= hp.default <= hp.high


@pytest.mark.parametrize(
    ("low", "high", "default", "named"),
    [
        (1.0, 1.0, 1.0, "low = 1.0, high = 1.0"),
        (2.0, 1.0, 1.5, "low = 2.0, high = 1.0"),
        (0.0, 1.0, 0.5, "low = 0.0"),
        (0.1, 1.0, 2.0, "default = 2.0"),
    ],
)
def test_bad_ranges_are_named(low: float, high: float, default: float, named: str) -> None:
    """The sentence names the HP and the value."""
    with pytest.raises(SearchSpaceError, match=f"'lr'.*{named}"):
        HP("lr", low, high, default)


def test_a_space_needs_hps_once_each() -> None:
    """Nothing to search, or one name twice, is a mistake in the study file."""
    with pytest.raises(SearchSpaceError, match="lr"):
        Space([])
    with pytest.raises(SearchSpaceError, match="lr"):
        Space([HP.of("lr"), HP.of("lr")])


def test_a_space_survives_its_table() -> None:
    """`from_table` reads what `to_json` wrote."""
    space = Space.from_table({"lr": {"high": 0.1}, "lr.embedding": {}, "residual.attn": {"low": 0.5}})

    assert space.hps == Space.from_table(space.to_json()).hps
    assert {"lr": 2**-8, "lr.embedding": 1.0, "residual.attn": 1.0} == space.defaults


def test_per_module_gives_each_module_type_a_multiplier() -> None:
    """`residual` has one multiplier per branch and no common value."""
    parametrization: Any = SimpleNamespace(module_types=("embedding", "q"), residual_branches=("attn", "mlp"))
    space = Space.per_module(parametrization, ["lr", "residual"])

    assert ["lr", "lr.embedding", "lr.q", "residual.attn", "residual.mlp"] == list(space.hps)


def test_per_module_with_depth_profiles() -> None:
    """Each kind gets its knots, evenly spaced over relative depth; `residual` too."""
    parametrization: Any = SimpleNamespace(module_types=("q",), residual_branches=("attn",))
    space = Space.per_module(parametrization, ["lr", "residual"], depth_knots=3)
    four = Space.per_module(parametrization, ["lr"], depth_knots=4)

    assert ["lr", "lr.q", "lr.@0", "lr.@0.5", "lr.@1"] == list(space.hps)[:5]
    assert ["residual.attn", "residual.@0", "residual.@0.5", "residual.@1"] == list(space.hps)[5:]
    assert ["lr.@0", "lr.@0.333", "lr.@0.667", "lr.@1"] == list(four.hps)[2:]
    assert 1.0 == space.defaults["lr.@0.5"]
    assert ("lr", "@0.5") == split_name("lr.@0.5")
    with pytest.raises(SearchSpaceError, match="depth_knots = 1"):
        Space.per_module(parametrization, ["lr"], depth_knots=1)


def test_multipliers_join_the_hps_of_a_space() -> None:
    """Types and profiles are switched per kind; a multiplier that is there already keeps its range."""
    parametrization: Any = SimpleNamespace(module_types=("q", "up"), residual_branches=("attn",))
    own = Space.from_table({"lr": {}, "eps": {}, "lr.q": {"low": 0.5}})
    space = own.with_modules(parametrization, ["lr", "residual"], ["lr", "init_std"], 2)

    assert ["lr", "eps", "lr.q", "lr.up", "residual.attn"] == list(space.hps)[:5]
    assert ["lr.@0", "lr.@1", "init_std.@0", "init_std.@1"] == list(space.hps)[5:]
    assert 0.5 == space.hps["lr.q"].low
    assert 1 / 8 == space.hps["lr.up"].low
    assert own.hps == own.with_modules(parametrization, []).hps
    with pytest.raises(SearchSpaceError, match="depth_knots = 1"):
        own.with_modules(parametrization, [], ["lr"], 1)


@pytest.mark.parametrize("depth", [[], ["one_minus_beta1"]])
def test_multipliers_keep_betas_above_zero(depth: list[str]) -> None:
    """With 1-β and all that multiplies it at their highest, 1-β stays below 1; no room is said."""
    parametrization: Any = SimpleNamespace(module_types=("q",), residual_branches=())
    space = Space.from_table({"one_minus_beta1": {"low": 0.02, "high": 0.4}})
    space = space.with_modules(parametrization, ["one_minus_beta1"], depth)
    highest = space.hps["one_minus_beta1"].high * space.hps["one_minus_beta1.q"].high
    highest *= space.hps["one_minus_beta1.@0"].high if depth else 1.0

    assert pytest.approx(0.98) == highest
    with pytest.raises(SearchSpaceError, match=r"one_minus_beta1.*0\.99"):
        Space.from_table({"one_minus_beta1": {"high": 0.99}}).with_modules(
            parametrization, ["one_minus_beta1"]
        )


def test_the_sharpness_prior_moves_learning_rates_only() -> None:
    """Ratios to the norms: embedding 10, QK 8, FFN 6, VO 4 (2502.19002)."""
    types = ("embedding", "q", "up", "v", "attn_norm", "unembedding")
    parametrization: Any = SimpleNamespace(module_types=types, residual_branches=())
    space = Space.from_table({"lr": {}}).with_modules(parametrization, ["lr", "eps"], prior="sharpness")
    ratios = [space.defaults[f"lr.{module}"] / space.defaults["lr.attn_norm"] for module in types]

    assert [10.0, 8.0, 6.0, 4.0, 1.0] == pytest.approx(ratios[:5])
    assert [1.0] * 7 == [space.defaults[name] for name in ("lr.unembedding", *(f"eps.{m}" for m in types))]


def test_suggest_asks_a_trial_in_log_scale() -> None:
    """Every HP reaches the study under its own name, range and log scale."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trial = study.ask()
    values = Space.from_table({"lr": {}, "lr.q": {}}).suggest(trial)

    assert values == trial.params
    expected = optuna.distributions.FloatDistribution(KINDS["lr"].low, KINDS["lr"].high, log=True)
    assert expected == trial.distributions["lr"]


def test_a_string_in_place_of_kinds_is_refused() -> None:
    """Its letters are not kinds."""
    with pytest.raises(SearchSpaceError, match="'lr'"):
        Space.per_module(None, kinds="lr")  # type: ignore[arg-type]
