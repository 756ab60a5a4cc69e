"""Exports: each tensor is in one group with its settings, in every format; remarks name what is left out."""

import fnmatch
import json
import re
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transfer_bo.errors import ParametrizationError
from transfer_bo.integrations import FORMATS, export
from transfer_bo.parametrization import parametrize
from transfer_bo.scale import Scale
from transfer_bo.training.model import build_transformer
from transfer_bo.training.unit_scaled import unit_transformer

BASE = Scale(width=32, depth=2, batch=8, tokens=1e5)
TARGET = Scale(width=64, depth=4, batch=32, tokens=2e5)
P = parametrize(build_transformer, BASE)
NAMES = set(P.at(TARGET).tensors)
HPS = {"lr": 0.01, "lr.embedding": 4.0, "weight_decay": 0.2, "one_minus_beta2": 0.02}


def suggestion(**params):
    """A suggestion at the target."""
    return SimpleNamespace(target=TARGET, params={**HPS, **params})


def expected(params=HPS):
    """The optimizer's own options by tensor: those of `param_groups`."""
    p, model = P.at(TARGET), build_transformer(TARGET)
    names = {id(q): name for name, q in model.named_parameters()}
    return {
        names[id(q)]: {key: group[key] for key in ("lr", "betas", "eps", "weight_decay")}
        for group in p.param_groups(model, params)
        for q in group["params"]
    }


def torchtitan_groups(config, names):
    """Options by tensor as torchtitan assigns them: the first pattern found in a name."""
    groups = config["optimizer"]["param_groups"]
    matching = {n: [g for g in groups if re.search(g["pattern"], n)] for n in names}
    assert all(1 == len(found) for found in matching.values())
    return {name: found[0]["optimizer_kwargs"] for name, found in matching.items()}


def megatron_groups(config, names):
    """Options by tensor as Megatron's scheduler sets them."""
    overrides, common = config["config_overrides"], config["optimizer_config"]
    found = {}
    for name in names:
        (one,) = [o for o in overrides if any(fnmatch.fnmatch(name, pattern) for pattern in o["name"])]
        decay = common["weight_decay"] * one["wd_mult"]
        found[name] = {"lr": one["max_lr"], "weight_decay": decay, "betas": one["betas"], "eps": one["eps"]}
    return found


hps = st.fixed_dictionaries(
    {"lr": st.floats(1e-4, 0.1)},
    optional={
        "lr.q": st.floats(0.2, 5),
        "lr.@0": st.floats(0.2, 5),
        "lr.@1": st.floats(0.2, 5),
        "weight_decay": st.sampled_from([0.0, 0.1]),
        "weight_decay.norm": st.just(0.0),
        "one_minus_beta1.mlp": st.floats(0.5, 2),
        "residual.mlp": st.floats(0.5, 2),
    },
)


@settings(max_examples=15, deadline=None)
@given(hps)
def test_every_format_gives_each_tensor_its_settings(params):
    """Read as each framework reads it, an export sets what `param_groups` sets."""
    s = SimpleNamespace(target=TARGET, params=params)
    wanted = expected(params)
    by_json = {t["name"]: t for t in export(s, P, "json").settings["tensors"]}
    torch_groups = export(s, P, "torch").settings

    assert wanted == {n: {k: g[k] for k in wanted[n]} for g in torch_groups for n in g["params"]}
    assert wanted == torchtitan_groups(export(s, P, "torchtitan").settings, NAMES)
    for name, options in megatron_groups(export(s, P, "megatron").settings, NAMES).items():
        assert wanted[name] == {key: pytest.approx(value, rel=1e-12) for key, value in options.items()}
    for name, options in wanted.items():
        assert options["lr"] == by_json[name]["lr"]
        assert options["betas"] == (by_json[name]["beta1"], by_json[name]["beta2"])


@pytest.mark.parametrize("name", FORMATS)
def test_texts_can_be_used(name):
    """JSON parses, Python compiles, and the batch and all remarks are in it."""
    found = export(suggestion(batch_tokens=1000.0, dropout=0.1), P, name, context=64)

    assert any("dropout" in note for note in found.notes)
    assert any("16 whole sequences" in note for note in found.notes)
    assert name == found.format
    if name in ("json", "torch"):
        assert json.loads(str(found))
    else:
        compile(str(found), "export", "exec")
        assert all(note in str(found) for note in found.notes)


def test_block_numbers_become_wildcards():
    """Blocks with equal settings share a pattern; with a profile over depth each has its own."""
    alike = export(suggestion(), P, "torchtitan").settings["optimizer"]["param_groups"]
    profile = export(suggestion(**{"lr.@0": 2.0}), P, "torchtitan").settings["optimizer"]["param_groups"]

    assert not any(re.search(r"blocks.*\\\.3|blocks\\.*3", group["pattern"]) for group in alike)
    assert len(alike) == len(profile)
    varied = export(suggestion(**{"lr.@0": 2.0, "lr.@1": 0.5}), P, "megatron")
    assert len(varied.settings["config_overrides"]) > len(alike)
    assert any("pipeline" in note for note in varied.notes)


def test_wrapped_names_match_torchtitans_patterns():
    """Activation checkpointing and torch.compile put parts into names; patterns allow for them."""
    config = export(suggestion(), P, "torchtitan").settings
    plain = torchtitan_groups(config, NAMES)
    wrapped = {
        "_orig_mod." + re.sub(r"(blocks\.\d+)\.", r"\1._checkpoint_wrapped_module.", name): name
        for name in NAMES
    }

    assert {wrapped[name]: options for name, options in torchtitan_groups(config, wrapped).items()} == plain


def test_an_optimizer_of_another_kind_is_named():
    """Muon's tensors are left out of formats that have another Muon, with a sentence that counts them."""
    muon = parametrize(build_transformer, BASE, rule="muon")
    for name in ("torchtitan", "megatron"):
        notes = [note for note in export(suggestion(), muon, name).notes if "'muon'" in note]
        assert 24 == sum(int(count) for note in notes for count in re.findall(r"(\d+) tensors", note))


@pytest.mark.parametrize("optimizer", ["sgd", "muonh", "adamh", "shampoo"])
def test_every_format_takes_every_optimizer(optimizer):
    """Tensors whose optimizer a framework lacks are left out with a sentence; torch and JSON hold all."""
    p = parametrize(build_transformer, BASE, rule="mup", optimizer=optimizer)
    for name in ("torchtitan", "megatron"):
        assert any(f"'{optimizer}'" in note for note in export(suggestion(), p, name).notes)

    groups = export(suggestion(), p, "torch").settings
    tensors = export(suggestion(), p, "json").settings["tensors"]
    assert {name for group in groups for name in group["params"]} == {tensor["name"] for tensor in tensors}
    assert {optimizer, p.rule.optimizer} == {tensor["optimizer"] for tensor in tensors}
    assert 0 <= export(suggestion(), p, "hf").settings["weight_decay"]


def test_what_is_not_possible():
    """An unknown format, and a batch in tokens without a context, are refused by name."""
    with pytest.raises(ParametrizationError) as unknown:
        export(suggestion(), P, "yaml")
    with pytest.raises(ParametrizationError) as batch:
        export(suggestion(batch_tokens=1000.0), P, "json")

    assert "'yaml'" in str(unknown.value)
    assert "batch_tokens" in str(batch.value)


def test_with_megatron_core():
    """Megatron-core itself makes the same groups of the exported configuration."""
    module = "megatron.core.optimizer.optimizer_config"
    megatron = pytest.importorskip(module, reason="needs the group `frameworks`")
    found = export(suggestion(), P, "megatron")
    scope: dict = {}
    code = str(found).replace("get_megatron_optimizer\n", "get_megatron_optimizer as _\n", 1)
    exec(code.rpartition("optimizer = ")[0], scope)
    wanted = expected()
    for name in NAMES:
        key = [k for k in scope["config_overrides"] if k.matches(torch.nn.Parameter(torch.ones(1)), name)]
        assert 1 == len(key)
        assert wanted[name]["lr"] == scope["config_overrides"][key[0]]["max_lr"]
    assert isinstance(scope["config"], megatron.OptimizerConfig)


def test_with_torchtitan():
    """torchtitan itself makes an optimizer of the exported configuration, with the same settings."""
    torchtitan = pytest.importorskip("torchtitan.components.optimizer", reason="needs the group `frameworks`")
    scope: dict = {"config": SimpleNamespace(training=SimpleNamespace())}
    exec(str(export(suggestion(), P, "torchtitan")), scope)
    config = scope["config"].optimizer
    config.implementation = "for-loop"
    model = build_transformer(TARGET)
    container = torchtitan.OptimizersContainer(config, model_parts=[model])
    P.at(TARGET).initialize(model, HPS)

    assert P.at(TARGET).check(model, list(container), HPS).is_active
    assert 32 == scope["config"].training.global_batch_size


def test_multipliers_that_a_model_names_are_exported():
    """As they are to be set, with a remark, as they belong to no tensor."""
    base = Scale(width=16, depth=2)
    suggested = SimpleNamespace(target=base, params={"lr": 0.1, "forward.ffn_act": 2.0})
    exported = export(suggested, parametrize(unit_transformer, base, rule="u_mup"), "json")
    content = json.loads(exported.text)

    assert (2.0, 1.0) == tuple(content["forward_multipliers"][n] for n in ("ffn_act", "loss_softmax"))
    assert any("ffn_act" in note for note in exported.notes)
