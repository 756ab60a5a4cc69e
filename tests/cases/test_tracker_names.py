"""A name means the same with the prefix of a tracker, in camel case, with hyphens, or as a usual synonym."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from generated_tables import ASK, PLAIN
from hypothesis import given
from hypothesis import strategies as st

import transfer_bo as tb
from transfer_bo.dimension import Dimension
from transfer_bo.errors import RunTableError, SearchSpaceError
from transfer_bo.run_table.columns import guess_columns, name_columns
from transfer_bo.run_table.published_laws import compare
from transfer_bo.run_table.read import read_table
from transfer_bo.run_table.warm_start import read_source_runs
from transfer_bo.scale import Scale, default_cost
from transfer_bo.surrogate.coordinates import Coordinates
from transfer_bo.surrogate.priors import drift_correlation, drift_priors, optimum_spread
from transfer_bo.synonyms import AXES, HPS, LOSSES, axis_kind, hp_kind, short_names, without_prefix

PREFIXES = [
    *("config.", "config/", "hparams/", "params_", "params.", "user_attrs_", "user_attrs.", "optimizer."),
    *("summary.", "metrics.", "train.", "model/", "config/model.", "args.", "data:"),
]

AXIS_NAMES = [(name, kind) for kind, names in AXES.items() for name in names]
HP_NAMES = [(name, kind) for kind, names in HPS.items() for name in names]


def camel(name: str) -> str:
    """`n_params` -> `nParams`."""
    first, *others = name.split("_")
    return first + "".join(word.title() for word in others)


@given(st.sampled_from(AXIS_NAMES), st.sampled_from(["", *PREFIXES]), st.booleans(), st.booleans())
def test_axes(known: tuple[str, str], prefix: str, hyphens: bool, upper: bool) -> None:
    """Every synonym of every axis."""
    name, kind = known
    written = name.replace("_", "-") if hyphens else name

    assert kind == axis_kind(prefix + (written.upper() if upper else written))


@given(st.sampled_from(HP_NAMES), st.sampled_from(["", "peak_", *PREFIXES]), st.booleans())
def test_hps(known: tuple[str, str], prefix: str, hyphens: bool) -> None:
    """Every word of every kind."""
    name, kind = known

    assert kind == hp_kind(prefix + (name.replace("_", "-") if hyphens else name))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("nParams", "n_params"), ("dModel", "width"), ("hiddenSize", "width"), ("numLayers", "depth")),
        *(("numTokens", "tokens"), ("maxSteps", "tokens"), ("batchSize", "batch"), ("N", "n_params")),
        *(("D", "tokens"), ("config/model.d_model", "width"), ("train_tokens", "tokens"), ("gbs", "batch")),
        *(("budget", "budget"), ("data_size", "data_size"), ("foo.bar", "foo_bar")),
    ],
)
def test_axes_in_camel_case_and_others(name: str, kind: str) -> None:
    """A name of no known kind is its own."""
    assert kind == axis_kind(name)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("learningRate", "lr"), ("weightDecay", "weight_decay"), ("peakLR", "lr"), ("adam_beta2", "beta")),
        *(("optimizer.betas[1]", "beta"), ("lr.q_norm", "lr"), ("lr.@0.5", "lr"), ("config.lr.mlp", "lr")),
        *(("lr_warmup_steps", "other"), ("lr_scheduler_type", "other"), ("min_lr", "other")),
        *(("batch_norm", "other"), ("decay_steps", "other"), ("lr_decay", "other"), ("num_batches", "other")),
        *(("optimizer.decay", "weight_decay"), ("dropout", "other"), ("step_size", "lr")),
    ],
)
def test_hps_in_camel_case_and_what_only_sounds_like_one(name: str, kind: str) -> None:
    """The warm-up of a learning rate is none."""
    assert kind == hp_kind(name)


def test_synonyms_do_not_overlap() -> None:
    """No name is two axes, and every name is in its plain form."""
    names = [name for names in AXES.values() for name in names]

    assert len(set(names)) == len(names)
    assert all(name == short_names(name)[0] for name in (*names, *LOSSES))


@pytest.mark.parametrize("prefix", PREFIXES)
def test_priors_and_costs_do_not_depend_on_the_prefix(prefix: str) -> None:
    """Drift, its correlation, spread of the optimum, coordinates, and cost."""
    hps, axes = ["lr", "weight_decay", "batch_size"], ["width", "depth", "tokens"]
    long_hps, long_axes = [prefix + hp for hp in hps], [prefix + axis for axis in axes]
    base = Scale(width=1, depth=1, tokens=1)
    long_base = Scale({prefix + axis: 1.0 for axis in axes})
    scale, long = Scale(width=3, depth=5, tokens=7), Scale(dict(zip(long_axes, (3, 5, 7), strict=True)))

    def mix(names: list[str], at: Scale) -> torch.Tensor:
        return Coordinates([Dimension(name, "log", 1e-3, 1e-1) for name in names], at, []).mix

    assert drift_priors(hps, axes, "raw") == drift_priors(long_hps, long_axes, "raw")
    for hp, long_hp in zip(hps, long_hps, strict=True):
        assert drift_correlation(hp, axes, "raw") == drift_correlation(long_hp, long_axes, "raw")
        assert optimum_spread(hp, True) == optimum_spread(long_hp, True)
    assert mix(hps, base).equal(mix(long_hps, long_base))
    assert default_cost(scale) == default_cost(long)


@pytest.mark.parametrize(
    ("lr", "decay"), [("learning_rate", "wd"), ("optimizer.lr", "optimizer.weight_decay")]
)
def test_decay_acts_through_the_rate_under_any_name(lr: str, decay: str) -> None:
    """Weight decay is taken together with the learning rate."""
    dimensions = [Dimension(name, "log", 1e-3, 1e-1) for name in (lr, decay)]

    assert [[1.0, 0.0], [1.0, 1.0]] == Coordinates(dimensions, Scale(width=1), []).mix.tolist()


def test_the_answer_does_not_depend_on_the_names() -> None:
    """The same runs under a tracker's names, under synonyms, and declared: the same numbers."""
    plain = tb.suggest_from_runs(PLAIN, **ASK)
    named = tb.suggest_from_runs(
        PLAIN.rename(columns={"width": "config.model.d_model", "lr": "config.optimizer.lr"}),
        axes=["config.model.d_model"],
        hps={"config.optimizer.lr": "log"},
        target={"config.model.d_model": 256},
        held_out=False,
    )
    declared = tb.suggest_from_runs(
        PLAIN.rename(columns={"width": "budget", "lr": "rate"}),
        axes={"budget": "width"},
        hps={"rate=lr": "log"},
        target={"budget": 256},
        held_out=False,
    )

    assert [*plain.params.values()] == [*named.params.values()] == [*declared.params.values()]
    assert [*plain.interval().values()] == [*declared.interval().values()]
    assert plain.drift["lr"]["width"] == declared.drift["rate"]["budget"]
    assert "axis_kind_unknown" not in str(declared.evidence["notes"])


def test_a_name_that_says_nothing_is_warned_of() -> None:
    """For an HP and for an axis, with what to declare."""
    suggestion = tb.suggest_from_runs(
        PLAIN.rename(columns={"width": "budget", "lr": "rate"}),
        axes=["budget"],
        hps={"rate": "log"},
        target={"budget": 256},
        held_out=False,
    )
    notes = {note["code"]: note for note in suggestion.evidence["notes"]}

    assert {"column": "rate"} == notes["hp_kind_unknown"]["details"]
    assert "rate=lr" in notes["hp_kind_unknown"]["text"]
    assert {"column": "budget"} == notes["axis_kind_unknown"]["details"]
    assert "budget=n_params" in notes["axis_kind_unknown"]["text"]


def test_declared_names() -> None:
    """As NAME=KIND, unless a column has just that name."""
    table = PLAIN.rename(columns={"width": "a=width", "lr": "b"})

    columns = name_columns(table, ["a=width"], {"b=lr": "log"}, "loss")

    assert ("a=width",) == columns.axes
    assert {"b": "log"} == columns.hps
    assert {"b": "lr"} == columns.kinds


@pytest.mark.parametrize(
    ("axes", "hps", "error"),
    [(["width=size"], {"lr": "log"}, RunTableError), (["width"], {"lr=rate": "log"}, SearchSpaceError)],
)
def test_kinds_that_do_not_exist(axes: list[str], hps: dict[str, str], error: type[Exception]) -> None:
    """The error lists those that do."""
    with pytest.raises(error, match=r"'size'|'rate'") as caught:
        name_columns(PLAIN, axes, hps, "loss")

    assert "batch" in str(caught.value)


def test_the_column_that_was_meant_is_named() -> None:
    """A name without its prefix."""
    with pytest.raises(RunTableError, match=r"'config\.width'"):
        tb.suggest_from_runs(PLAIN.rename(columns={"width": "config.width"}), **ASK)


@pytest.mark.parametrize("prefix", ["config.", "config/", "params_", "hparams/", "user_attrs_"])
def test_guesses_of_exported_tables(prefix: str) -> None:
    """The names of trackers, and a name of a loss function or of a model that is no number."""
    table = PLAIN.rename(columns={"width": f"{prefix}width", "lr": f"{prefix}lr", "loss": "val/loss"})
    table = table.assign(
        loss="cross_entropy", model_size="small", **{f"{prefix}one_minus_beta2": [0.1, 0.2] * 3}
    )

    columns = guess_columns(table)

    assert (f"{prefix}width",) == columns.axes
    assert {f"{prefix}lr": "log", f"{prefix}one_minus_beta2": "log"} == columns.hps
    assert "val/loss" == columns.loss


def test_laws_apply_under_a_trackers_names() -> None:
    """A published law of the learning rate is one of `optimizer.lr`."""
    plain = compare(
        {"lr": 1e-3}, Scale(n_params=1e9, tokens=1e10), Scale(n_params=1e8, tokens=1e9), {"lr": 1e-3}
    )
    named = compare(
        {"optimizer.lr": 1e-3},
        Scale({"config.n_params": 1e9, "D": 1e10}),
        Scale({"config.n_params": 1e8, "D": 1e9}),
        {"optimizer.lr": 1e-3},
    )

    assert [law["value"] for law in plain] == [law["value"] for law in named]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *(("config.lr", "lr"), ("params_lr", "lr"), ("config/optimizer.lr", "optimizer.lr")),
        *(("params_count", "params_count"), ("user_attrs_width", "width"), ("config.", "config.")),
        *(("lr", "lr"), ("data_fraction", "data_fraction"), ("param_scale", "scale"), ("tags.seed", "seed")),
    ],
)
def test_prefixes(name: str, expected: str) -> None:
    """Only what a tracker writes is taken away."""
    assert expected == without_prefix(name)


@pytest.mark.parametrize("prefix", ["config.", "params_", "hparams/"])
def test_source_runs_lose_the_prefix(prefix: str) -> None:
    """So that they meet the HPs and axes of the new study."""
    table = PLAIN.rename(columns={"width": f"{prefix}width", "lr": f"{prefix}lr"}).assign(run_id=range(6))

    source = read_source_runs(pd.DataFrame(table), scales=[tb.Scale(width=32)])

    assert [{"lr": lr} for lr in PLAIN["lr"]] == [run.params for run in source.runs]
    assert [{"width": width} for width in PLAIN["width"]] == [dict(run.scale or {}) for run in source.runs]


AXES_IN_OTHER_WORDS = {
    "n_params": "#params|Params (M)|number of parameters|total_parameters|active_params|n_params.value",
    "tokens": "#tokens|Tokens [B]|consumed_train_tokens|num_updates|max_train_steps|total_training_steps",
    "width": "hidden_layer_size|model channels|num_units|config.width.value|transformer_width|dim_model",
    "depth": "number of layers|num_decoder_layers|#layers|n_transformer_blocks|layer_count",
    "batch": "effective_batch_size|batchSize|bsz|batch_size_per_gpu|tokens_per_step|global_train_batch_size",
    "warmup_steps": "warmup_steps",
    "eval_batch_size": "eval_batch_size",
    "head_dim": "head_dim",
    "vocab_size": "vocab_size",
    "tokens_per_param": "tokens_per_param",
    "d_k": "d_k",
}


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind, names in AXES_IN_OTHER_WORDS.items() for name in names.split("|")],
)
def test_axes_in_other_words(kind: str, name: str) -> None:
    """What is counted decides, not the words around it; other things that are counted are no axes."""
    assert kind == axis_kind(name)


@given(
    st.sampled_from(["n_params", "tokens", "layers", "updates", "batch"]),
    st.lists(st.sampled_from(["total", "number_of", "num", "training", "model"]), max_size=3, unique=True),
    st.sampled_from(["_", " ", "-"]),
)
def test_words_around_what_is_counted(head: str, others: list[str], separator: str) -> None:
    """In any number and order."""
    assert axis_kind(head) == axis_kind(separator.join([*others, head]).replace("_", separator))


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        *(("lr", "learningrate|lr0|lrate|blr"), ("weight_decay", "weightdecay|l2_reg|optimizer.l2_penalty")),
        *(("batch", "batchsize|bsz"), ("other", "bn_momentum|ema_beta|label_smoothing_eps|lr_gamma|kl_beta")),
        ("other", "eval_batch_size|per_device_eval_batch_size"),
    ],
)
def test_hps_in_other_words(kind: str, names: str) -> None:
    """And what only sounds like one."""
    assert [kind] * len(names.split("|")) == [hp_kind(name) for name in names.split("|")]


@pytest.mark.parametrize(
    "name",
    [
        *("Loss/val", "eval/c4/CrossEntropyLoss", "best_val_loss", "val_perplexity", "test/bpc", "eval_nll"),
        "lm loss validation",
    ],
)
def test_the_only_loss_is_guessed(name: str) -> None:
    """Under any name, training loss aside."""
    table = read_table(PLAIN.rename(columns={"loss": name}).assign(**{"lm loss train": [1, 2, 3, 4, 5, 6]}))

    assert name == guess_columns(table).loss


def test_several_losses_are_not_guessed_between() -> None:
    """They are named."""
    table = read_table(PLAIN.rename(columns={"loss": "a_loss"}).assign(b_loss=[1, 2, 3, 4, 5, 6]))

    with pytest.raises(RunTableError, match="a_loss, b_loss"):
        guess_columns(table)


def test_a_bad_cell_is_named_where_a_column_would_be_guessed() -> None:
    """Instead of saying that no column looks like a loss."""
    table = read_table(PLAIN.astype(object).assign(loss=["3,1 nats", *PLAIN.loss[1:]]))

    with pytest.raises(RunTableError, match="'3,1 nats' in row 1"):
        guess_columns(table)


def test_laws_where_an_axis_has_a_unit() -> None:
    """Of a number of parameters in millions the same values, of steps none that need tokens."""
    at = Scale(n_params=1e9, tokens=2e10), Scale(n_params=1e8, tokens=2e9)
    params, optimum = {"lr": 1e-3, "batch_tokens": 1e6}, {"lr": 1e-3}

    def values(target: Scale, anchor: Scale) -> dict[tuple[str, str], float]:
        found = compare(params, target, anchor, optimum)
        return {(law["law"], law["hp"]): law["value"] for law in found}

    def renamed(scale: Scale, n: str, d: str, unit: float) -> Scale:
        return Scale({n: scale["n_params"] / unit, d: scale["tokens"] / unit})

    expected = values(*at)
    in_millions = values(*(renamed(scale, "Params (M)", "Tokens (M)", 1e6) for scale in at))
    in_steps = values(*(renamed(scale, "n_params", "steps", 1.0) for scale in at))

    assert pytest.approx(expected) == in_millions
    assert {"Step Law", "DeepSeek"}.isdisjoint({law for law, _ in in_steps})
    assert {("Porian et al.", "lr"), ("Complete(d)P", "lr")} <= in_steps.keys()
