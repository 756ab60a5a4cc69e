"""Tensors that are not what they seem: refused for the true reason, or given to the optimizer as they are."""

import warnings

import pytest
import torch
from generated_models import BASE, TARGET, VOCAB, Block, tokens
from torch import nn

from transfer_bo.errors import ParametrizationError
from transfer_bo.parametrization import parametrize
from transfer_bo.scale import Scale


class Net(nn.Module):
    """A residual network whose blocks and head come from functions of the width."""

    def __init__(self, scale, branch=nn.Linear, head=lambda width: nn.Linear(width, VOCAB)):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, scale.width)
        self.blocks = nn.ModuleList(Block(scale.width, "mlp") for _ in range(scale.depth))
        for block in self.blocks:
            block.mlp = branch(scale.width, scale.width)
        self.head = head(scale.width)

    def forward(self, x):
        """Logits."""
        x = self.embedding(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def old_weight_norm(i, o):
    """The hook of torch.nn.utils, which is deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(nn.Linear(i, o))


class Spectral(nn.Linear):
    """A layer of complex weights, applied to the spectrum."""

    def __init__(self, i, o):
        super().__init__(i, o)
        self.weight = nn.Parameter(torch.randn(o, i, dtype=torch.complex64))

    def forward(self, x):
        """Same shape."""
        return torch.fft.irfft(torch.fft.rfft(x, dim=1) @ self.weight.mT, dim=1, n=x.shape[1])


@pytest.mark.parametrize(
    ("branch", "named"),
    [
        (lambda i, o: nn.utils.parametrizations.weight_norm(nn.Linear(i, o)), "WeightNorm"),
        (lambda i, o: nn.utils.parametrizations.spectral_norm(nn.Linear(i, o)), "SpectralNorm"),
        (old_weight_norm, "WeightNorm"),
        (lambda i, o: nn.utils.spectral_norm(nn.Linear(i, o)), "SpectralNorm"),
        (Spectral, "complex"),
        (lambda i, o: nn.LazyLinear(o), "lazy"),
    ],
)
def test_what_no_rule_is_stated_for(branch, named):
    """The error names the tensor's layer and why no rule can treat it."""
    with pytest.raises(ParametrizationError) as error:
        parametrize(lambda scale: Net(scale, branch), BASE, TARGET)

    assert "blocks.0.mlp" in str(error.value)
    assert named in str(error.value)


def test_roles_that_are_given_are_used():
    """Whoever states the roles of a normalised weight's tensors may train it, over widths."""
    wide = BASE.replace(width=32)
    roles = {"*.original0": "norm_gain", "*.original1": "hidden_weight"}

    def build(scale):
        return Net(scale, lambda i, o: nn.utils.parametrizations.weight_norm(nn.Linear(i, o)))

    p = parametrize(build, BASE, wide, roles=roles)
    model = build(wide)
    p.initialize(model)

    assert model(tokens()).isfinite().all()
    assert len(list(model.parameters())) == sum(len(group["params"]) for group in p.param_groups(model))
    with pytest.raises(ParametrizationError) as error:
        parametrize(build, BASE, TARGET, roles=roles)
    assert "normalised" in str(error.value)


class Experts(nn.Module):
    """A mixture of four experts, the best two by score + bias; the bias ranks and does nothing else."""

    def __init__(self, width, as_buffer):
        super().__init__()
        self.router = nn.Linear(width, 4, bias=False)
        if as_buffer:
            self.register_buffer("balance", torch.zeros(4))
        else:
            self.balance = nn.Parameter(torch.zeros(4))
        self.up = nn.Parameter(torch.randn(4, width, 2 * width) / width**0.5)
        self.down = nn.Parameter(torch.randn(4, 2 * width, width) / width**0.5)

    def forward(self, x):
        """Same shape."""
        scores = self.router(x).sigmoid()
        chosen = (scores + self.balance).topk(2, dim=-1).indices
        weights = torch.zeros_like(scores).scatter(-1, chosen, scores.gather(-1, chosen))
        hidden = torch.einsum("btd,edf->betf", x, self.up).relu()
        return torch.einsum("betf,efd,bte->btd", hidden, self.down, weights)


@pytest.mark.parametrize("as_buffer", [True, False])
def test_a_bias_that_balances_the_load_of_experts(as_buffer):
    """It is in no group of the optimizer, so that training and decay do not change it."""

    def build(scale):
        return Net(scale, lambda i, o: Experts(i, as_buffer))

    p = parametrize(build, BASE, TARGET)
    model = build(TARGET)
    p.initialize(model)
    optimizer = torch.optim.AdamW(p.param_groups(model, {"weight_decay": 0.5}))
    of = {id(q): group for group in optimizer.param_groups for q in group["params"]}
    with torch.no_grad():
        model.blocks[0].mlp.balance += torch.arange(4.0)
    for _ in range(2):
        optimizer.zero_grad(set_to_none=False)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()

    assert torch.equal(torch.arange(4.0), model.blocks[0].mlp.balance)
    assert id(model.blocks[0].mlp.balance) not in of
    assert p.check(model, optimizer).is_active
    if not as_buffer:
        assert {"untrained"} == {str(t.role) for n, t in p.tensors.items() if n.endswith("balance")}
    assert "router" == str(p.tensors["blocks.0.mlp.router.weight"].role)


def test_an_ordinary_bias_is_trained():
    """A router's own bias gets a gradient through the scores, so it is no load-balancing bias."""

    class Biased(Experts):
        def __init__(self, width):
            super().__init__(width, True)
            self.router = nn.Linear(width, 4)

    p = parametrize(lambda scale: Net(scale, lambda i, o: Biased(i)), BASE, TARGET)

    assert "shared" == str(p.tensors["blocks.0.mlp.router.bias"].role)


def test_scales_as_mappings_and_other_scales():
    """A scale may be given as a mapping; a model of another scale is referred to `at`."""
    p = parametrize(Net, base={"width": 16, "depth": 2}, target={"width": 32, "depth": 3})

    assert (BASE, TARGET) == (p.base, p.target)
    with pytest.raises(ParametrizationError) as error:
        p.initialize(Net(Scale(width=64, depth=3)))
    assert "p.at(scale)" in str(error.value)
    assert "Scale(width=32, depth=3)" in str(error.value)
    p.at({"width": 64, "depth": 3}).initialize(Net(Scale(width=64, depth=3)))
