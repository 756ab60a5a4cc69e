"""u-muP: unit activations at every size, and learning rates that are those of equivalent plain weights."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from transfer_bo import Scale, parametrize
from transfer_bo.errors import SearchSpaceError, TrainingError
from transfer_bo.parametrization.coordcheck import coordinate_check
from transfer_bo.space import Space
from transfer_bo.training.model import build_transformer
from transfer_bo.training.unit_scaled import UnitMultipliers, UnitTransformer, build_unit_transformer

BASE = Scale(width=16, depth=2)


def tokens(seed: int = 0) -> Tensor:
    """Bytes at random."""
    return torch.randint(256, (8, 33), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("width", [32, 128])
@pytest.mark.parametrize("depth", [2, 8])
@pytest.mark.parametrize("act", [0.5, 1.0, 4.0])
def test_activations_have_unit_size(width: int, depth: int, act: float) -> None:
    """At the start every layer's output has a root mean square near 1, whatever the sizes and the HPs."""
    torch.manual_seed(0)
    model = build_unit_transformer(UnitMultipliers(ffn_act=act))(Scale(width=width, depth=depth))
    sizes: dict[str, float] = {}

    def watch(name: str) -> Any:
        return lambda module, args, out: sizes.update({name: float(out.detach().square().mean().sqrt())})

    for name, module in model.named_modules():
        if name.rpartition(".")[2] in ("embedding", "q", "k", "v", "up", "down"):
            module.register_forward_hook(watch(name))
    logits = model(tokens())

    assert all(0.75 < size < 1.3 for size in sizes.values()), sizes
    assert 0.5 / math.sqrt(width) < float(logits.detach().square().mean().sqrt()) < 2 / math.sqrt(width)


def _losses(model: UnitTransformer, optimizers: list[torch.optim.Optimizer]) -> list[float]:
    losses = []
    for seed in range(4):
        windows = tokens(seed)
        loss = F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
        losses.append(float(loss.detach()))
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return losses


def test_learning_rates_follow_fan_in_and_depth() -> None:
    """Wider and deeper, the rule gives the base's learning rate times (fan-in)^-1/2 and (blocks)^-1/2."""
    build = build_unit_transformer()
    wide = Scale(width=64, depth=8)
    p = parametrize(build, BASE, wide, "u_mup")
    torch.manual_seed(1)
    one, other = build(wide), build(wide)
    p.initialize(one, {}, seed=1)
    other.load_state_dict(one.state_dict())
    hps = {"lr": 0.1, "weight_decay": 1e-3, "eps": 1e-12}
    groups = []
    for name, weight in other.named_parameters():
        factor = 1.0 if "unembedding" in name else 0.5
        lr = 0.1 * factor * (0.5 if name.startswith("blocks") else 1.0)
        groups.append({"params": [weight], "lr": lr, "weight_decay": 1e-3 / lr})
    plain = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-12)

    assert _losses(other, [plain]) == pytest.approx(_losses(one, p.optimizers(one, hps)), rel=1e-5)


def test_ratio_keeps_the_sum_of_squares() -> None:
    """Branches share what α_res gives, and depth divides it."""
    attn, mlp = UnitMultipliers(residual=0.5, attn_ratio=3.0).branches(4)

    assert 3 == pytest.approx(attn / mlp)
    assert 2 * 0.25 / 4 == pytest.approx(attn**2 + mlp**2)


MULTIPLIERS = {"ffn_act": 0.5, "attn_softmax": 4.0, "attn_ratio": 2.0, "loss_softmax": 3.0}


def test_multipliers_are_hps() -> None:
    """HPs `forward.<name>` are those that a model may be built with, and multiply what it is built with."""
    forward = {f"forward.{name}": value for name, value in MULTIPLIERS.items()}
    by_build = parametrize(build_unit_transformer(UnitMultipliers(**MULTIPLIERS)), BASE, rule="u_mup")
    by_hps = parametrize(build_unit_transformer(), BASE, rule="u_mup")
    found = []
    for p, hps in ((by_build, {}), (by_hps, forward), (by_hps, {})):
        model = p.build_model(BASE)
        p.initialize(model, hps, seed=1)
        found.append(_losses(model, p.optimizers(model, {"lr": 0.1, **hps})))

    assert found[0] == found[1]
    assert found[1] != found[2]
    assert tuple(MULTIPLIERS) == by_hps.forward_places
    assert 9.0 == by_build.forward_multipliers({"forward.loss_softmax": 3.0})["loss_softmax"]


def test_check_finds_a_multiplier_that_is_not_set() -> None:
    """The check names the place, what is expected and what the model has."""
    p, hps = parametrize(build_unit_transformer(), BASE, rule="u_mup"), {"forward.ffn_act": 2.0}
    model = p.build_model(BASE)
    optimizers = p.optimizers(model, hps)
    model.set_multipliers({"ffn_act": 1.0})
    (difference,) = (d for d in p.check(model, optimizers) if d.setting.startswith("forward"))

    assert ("forward.ffn_act", 2.0, 1.0) == (difference.setting, difference.expected, difference.actual)


def test_places_that_a_model_does_not_have() -> None:
    """An error, for the unit-scaled model as for one without any such places."""
    for build in (build_unit_transformer(), build_transformer):
        p = parametrize(build, BASE, rule="mup")
        for name in ("forward", "forward.q", "forward.@0.5", "forward.residual"):
            with pytest.raises(SearchSpaceError):
                p.check_hps({name: 1.0})


def test_per_module_space_has_a_multiplier_for_each_place() -> None:
    """The space lists the places, and suggests 1 for each."""
    space = Space.per_module(parametrize(build_unit_transformer(), BASE, rule="u_mup"), ["forward"], 2)

    assert {f"forward.{name}": 1.0 for name in MULTIPLIERS} == space.defaults


def test_bad_multipliers_and_widths() -> None:
    """A sentence each."""
    with pytest.raises(TrainingError):
        UnitMultipliers(ffn_act=0.0)
    with pytest.raises(TrainingError):
        build_unit_transformer()(Scale(width=24, depth=1))


@pytest.mark.slow  # trains models of three sizes
def test_coordinate_check() -> None:
    """All layers learn alike at every width, but for the embedding, whose rate u-muP divides by √width."""
    options: dict[str, Any] = {"axes": ("width",), "factors": (1, 4), "seeds": (0, 1, 2)}
    base, decay = BASE.replace(width=32, depth=4), {"u_mup": 2**-13, "sp": 0.01}
    found = {}
    for rule in decay:
        hps = {"lr": 0.02, "weight_decay": decay[rule]}
        check = coordinate_check(build_unit_transformer(), base, rule, hps=hps, **options)
        found[rule] = {growth.module: growth.exponent for growth in check.failures}

    assert {"embedding"} == set(found["u_mup"])
    assert -0.5 == pytest.approx(found["u_mup"]["embedding"], abs=0.1)
    assert {"q", "k", "up", "down"} <= set(found["sp"])
