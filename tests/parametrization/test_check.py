"""`Parametrization.check`: each way in which a set-up can be wrong is found and named, and nothing else."""

import itertools

import pytest
import torch
from small_models import Model, tokens, train
from torch import nn

from transfer_bo.errors import ParametrizationError
from transfer_bo.parametrization import parametrize
from transfer_bo.parametrization.residual import set_input_multiplier, set_multiplier
from transfer_bo.scale import Scale

BASE = Scale(width=16, depth=2, batch=8, tokens=1000)
TARGET = Scale(width=32, depth=4, batch=16, tokens=4000)
HPS = {"lr": 0.01, "lr.embedding": 4.0, "init_std.q": 2.0, "residual.mlp": 0.5, "weight_decay": 0.3}


def tied(scale):
    """The stand-in, its embedding tied."""
    model = Model(scale, bias=False)
    model.unembedding.weight = model.embedding.weight
    return model


def set_up(build=Model, fold=True, rule="complete_d_p", hps=HPS):
    """A parametrization, a model and its optimizer, all as they should be."""
    p = parametrize(build, BASE, TARGET, rule, fold=fold)
    model = build(TARGET)
    p.initialize(model, hps, seed=3)
    return p, model, torch.optim.AdamW(p.param_groups(model, hps))


def found_in(report):
    """(tensor, setting) of each difference."""
    return {(difference.tensor, difference.setting) for difference in report}


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("build", [Model, tied])
def test_nothing_is_wrong(build, fold):
    """A model set up by the parametrization has no difference, before and during training, in both forms."""
    p, model, optimizer = set_up(build, fold)
    before = p.check(model, optimizer)
    train(model, optimizer, 2, lambda m: p.clip_grad_norm_(m, 1.0))
    after = p.check(model, optimizer)

    assert [] == list(before)
    assert before.is_active
    before.raise_if_wrong()
    assert [] == list(after)
    assert ["tensor", "setting", "expected", "actual"] == list(before.table())


def test_several_optimizers():
    """Muon and AdamW together hold every tensor once; alone, each leaves the other's tensors out."""
    p = parametrize(Model, BASE, TARGET, "muon")
    model = Model(TARGET)
    p.initialize(model)
    optimizers = p.optimizers(model)

    assert [] == list(p.check(model, optimizers))
    assert {"group"} == {setting for _, setting in found_in(p.check(model, optimizers[0]))}


def test_a_tensor_in_no_group():
    """A tensor that the optimizer does not have is named."""
    p, model, optimizer = set_up()
    group = next(g for g in optimizer.param_groups if any(q is model.embedding.weight for q in g["params"]))
    group["params"] = [q for q in group["params"] if q is not model.embedding.weight]

    assert {("embedding.weight", "group")} == found_in(p.check(model, optimizer))


def test_a_tensor_in_two_groups():
    """A tensor that two optimizers step is named, and so is one that is not the model's."""
    p, model, optimizer = set_up()
    options = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
    twice = torch.optim.AdamW([{"params": [model.final_norm.weight], **options}])
    stranger = torch.optim.AdamW([nn.Parameter(torch.ones(2))])

    assert ("final_norm.weight", "group") in found_in(p.check(model, [optimizer, twice]))
    assert {("", "group")} == found_in(p.check(model, [optimizer, stranger]))


@pytest.mark.parametrize(
    ("option", "value"), [("lr", 0.5), ("betas", (0.8, 0.95)), ("eps", 1e-3), ("weight_decay", 0.0)]
)
def test_a_wrong_option(option, value):
    """A group whose option was changed is named with all its tensors."""
    p, model, optimizer = set_up()
    group = optimizer.param_groups[0]
    group[option] = value
    names = {name for name, q in model.named_parameters() if any(q is other for other in group["params"])}

    assert {(name, option) for name in names} == found_in(p.check(model, optimizer))


def test_plain_adamw():
    """One learning rate for all is not the parametrization, and is found."""
    p, model, _ = set_up()
    report = p.check(model, torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.3))

    assert {"lr", "eps", "weight_decay", "betas"} == {setting for _, setting in found_in(report)}
    with pytest.raises(ParametrizationError) as error:
        report.raise_if_wrong()
    assert "embedding.weight" in str(error.value)


def test_another_kind_of_optimizer():
    """Adam in the place of AdamW decays weights another way, whatever its options are."""
    p, model, _ = set_up()
    report = p.check(model, torch.optim.Adam(p.param_groups(model, HPS)))

    assert {"optimizer"} == {setting for _, setting in found_in(report)}


@pytest.mark.parametrize("name", ["adamh", "shampoo", "soap"])
def test_another_optimizer_of_matrices(name):
    """AdamW takes the same options as these, and is distinguished; their own are as they should be."""
    if name == "soap":
        pytest.importorskip("pytorch_optimizer")
    p = parametrize(Model, BASE, TARGET, "mup", optimizer=name)
    model = Model(TARGET)
    p.initialize(model)
    own, others = p.optimizers(model), p.optimizers(model)
    replaced = [torch.optim.AdamW(optimizer.param_groups) for optimizer in others]

    assert [] == list(p.check(model, own))
    assert {"optimizer"} == {setting for _, setting in found_in(p.check(model, replaced))}


def test_a_schedule():
    """A warm-up that keeps the peak is no difference; a factor on every rate without it is one."""
    p, model, optimizer = set_up()
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.1)
    scheduled = p.check(model, optimizer)
    for group in optimizer.param_groups:
        del group["initial_lr"]

    assert [] == list(scheduled)
    assert {("", "lr")} == found_in(p.check(model, optimizer))


def test_other_hps():
    """The HPs of the last set-up are compared with, or those that are given."""
    p, model, optimizer = set_up()

    assert {"lr"} == {s for _, s in found_in(p.check(model, optimizer, {**HPS, "lr.q": 2.0}))}
    assert [] == list(p.check(model, optimizer, dict(HPS)))


@pytest.mark.parametrize("name", ["blocks.1.attn.q.weight", "unembedding.weight", "blocks.3.mlp_norm.weight"])
def test_an_initial_value_that_was_not_applied(name):
    """A tensor of another size than `initialize` gave it is named; after the first step sizes have moved."""
    p, model, optimizer = set_up()
    with torch.no_grad():
        model.get_parameter(name).mul_(1.25)
    before = p.check(model, optimizer)
    train(model, optimizer, 1, lambda m: None)

    assert {(name, "init")} == found_in(before)
    assert [] == list(p.check(model, optimizer))


@pytest.mark.parametrize("seed", range(5))
def test_initial_values_of_another_seed(seed):
    """Values drawn by the model itself pass within sampling error where the rule agrees, and only there."""
    p = parametrize(Model, BASE, TARGET, "sp")
    torch.manual_seed(100 + seed)
    model = Model(TARGET)
    report = p.check(model, torch.optim.AdamW(p.param_groups(model)))

    assert [] == list(report)
    q = parametrize(Model, BASE, TARGET.replace(width=256))
    wide = Model(TARGET.replace(width=256))
    report = q.check(wide, torch.optim.AdamW(q.param_groups(wide)))
    assert ("unembedding.weight", "init") in found_in(report)
    assert ("blocks.0.attn.q.weight", "init") not in found_in(report)


@pytest.mark.parametrize("fold", [True, False])
def test_a_multiplier_that_is_not_applied(fold):
    """A hook that was removed or added is named by the module it is on."""
    p, model, optimizer = set_up(fold=fold)
    path = "blocks.2.mlp"
    set_multiplier(model.get_submodule(path), 3.0)
    added = p.check(model, optimizer)
    set_multiplier(model.get_submodule(path), 1.0)
    removed = p.check(model, optimizer)

    assert (path, "forward") in found_in(added)
    assert ((path, "forward") in found_in(removed)) is not fold


def test_a_tied_multiplier_that_is_not_applied():
    """Likewise on the input of the layer that holds a tied tensor."""
    p, model, optimizer = set_up(tied)
    set_input_multiplier(model.unembedding, 1.0)

    assert {("unembedding", "forward")} == found_in(p.check(model, optimizer))


def test_a_model_of_another_scale():
    """Its tensors are named with both shapes; nothing else is compared."""
    p, _, optimizer = set_up()
    report = p.check(Model(TARGET.replace(width=16)), optimizer)

    assert {"shape"} == {setting for _, setting in found_in(report)}
    assert ("embedding.weight", "shape") in found_in(report)


def test_every_difference_at_once():
    """Several mistakes are all named, in one report and one error."""
    p, model, optimizer = set_up()
    with torch.no_grad():
        model.embedding.weight.mul_(2)
    optimizer.param_groups[0]["eps"] = 1.0
    set_multiplier(model.blocks[0], 0.5)
    report = p.check(model, optimizer)

    assert {"init", "eps", "forward"} == {setting for _, setting in found_in(report)}
    assert len(report) == len(str(report).splitlines())
    assert model(tokens()).isfinite().all()
    assert all(a != b for a, b in itertools.pairwise(report))


def test_a_single_number_has_no_size():
    """The bias of a single output may be drawn as anything; a single constant may not change."""

    def build(scale):
        model = Model(scale)
        model.unembedding = nn.Linear(scale.width, 1)
        model.scale = nn.Parameter(torch.ones(1))
        model.register_forward_hook(lambda module, args, out: out * module.scale)
        return model

    p, model, optimizer = set_up(build)

    assert [] == list(p.check(model, optimizer))
    with torch.no_grad():
        model.scale.fill_(2.0)
        model.unembedding.bias.fill_(0.2)
    assert {("scale", "init")} == found_in(p.check(model, optimizer))


@pytest.mark.parametrize(
    ("clip", "expected"),
    [
        (lambda p, model: nn.utils.clip_grad_norm_(model.parameters(), 0.1), {("", "clipping")}),
        (lambda p, model: p.clip_grad_norm_(model, 0.1), set()),
        (lambda p, model: None, set()),
    ],
)
def test_clipping_that_is_not_ours(clip, expected):
    """A norm that torch's own clipping left is named; ours, and gradients that nobody clipped, are not."""
    p, model, optimizer = set_up()
    model(tokens()).logsumexp(-1).square().mean().backward()
    clip(p, model)

    assert expected == found_in(p.check(model, optimizer))
    assert bool(expected) == ("clip_grad_norm_" in str(p.check(model, optimizer)))


def test_clipping_is_alike_without_multipliers():
    """At the base both norms are the same, so that anybody may clip."""
    p = parametrize(Model, BASE, BASE)
    model = Model(BASE)
    p.initialize(model)
    optimizer = torch.optim.AdamW(p.param_groups(model))
    model(tokens()).logsumexp(-1).square().mean().backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)

    assert [] == list(p.check(model, optimizer))
