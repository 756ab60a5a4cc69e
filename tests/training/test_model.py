"""The reference transformer does what its equations say."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from transfer_bo import Scale, TransferError
from transfer_bo.training import Transformer, TransformerConfig, build_transformer
from transfer_bo.training.model import RMSNorm, rope_tables, rotate

DTYPES = [torch.float32, torch.float64]


def small(dtype: torch.dtype = torch.float64) -> Transformer:
    """Two heads, two blocks, always the same weights."""
    torch.manual_seed(0)
    return build_transformer(Scale(width=32, depth=2)).to(dtype)


def some_tokens(*shape: int) -> Tensor:
    """Always the same tokens."""
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_later_tokens_never_change_earlier_logits(dtype: torch.dtype) -> None:
    """Changing a token leaves every logit before it bitwise equal, and changes its own."""
    model, tokens = small(dtype), some_tokens(2, 24)
    changed = tokens.clone()
    changed[:, 15] = (changed[:, 15] + 1) % 256
    before, after = model(tokens), model(changed)

    assert torch.equal(before[:, :15], after[:, :15])
    assert not torch.isclose(before[:, 15:], after[:, 15:]).all(-1).any()


def test_rope_products_depend_on_distance_only() -> None:
    """A query turned to t and a key turned to u have a product that depends on t - u alone."""
    torch.manual_seed(0)
    length, size = 12, 16
    cos, sin = rope_tables(length, size, 10_000.0, torch.zeros((), dtype=torch.float64))
    q, k = torch.randn(2, size, dtype=torch.float64)
    products = rotate(q.expand(length, size), cos, sin) @ rotate(k.expand(length, size), cos, sin).T

    for distance in range(-length + 1, length):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=0, atol=1e-12)
    assert products[3, 0] != pytest.approx(products[0, 3].item())


def test_rope_turns_pairs_by_their_frequency() -> None:
    """The pair (1, 0) of index i at position t becomes (cos, sin) of t · base^(-i / (K/2))."""
    cos, sin = rope_tables(5, 8, 100.0, torch.zeros((), dtype=torch.float64))
    x = torch.zeros(5, 8, dtype=torch.float64)
    x[:, 2] = 1.0
    turned = rotate(x, cos, sin)
    angles = torch.arange(5, dtype=torch.float64) * 100.0 ** (-2 / 4)

    torch.testing.assert_close(turned[:, 2], angles.cos())
    torch.testing.assert_close(turned[:, 6], angles.sin())


def test_rope_is_no_rotation_at_position_zero() -> None:
    """The first position is left as it is."""
    x = torch.randn(1, 16, dtype=torch.float64)

    assert torch.equal(x, rotate(x, *rope_tables(1, 16, 10_000.0, x)))


def test_queries_and_keys_do_not_feel_the_size_of_their_weights() -> None:
    """With QK-norm a q or k matrix four times as large gives the same logits (eps aside)."""
    model, tokens = small(), some_tokens(2, 24)
    for module in model.modules():
        if isinstance(module, RMSNorm):
            module.eps = 0.0
    before = model(tokens)
    with torch.no_grad():
        model.blocks[0].attn.q.weight.mul_(4.0)
        model.blocks[1].attn.k.weight.mul_(4.0)

    torch.testing.assert_close(before, model(tokens))


@pytest.mark.parametrize(("branch", "last"), [("attn", "o"), ("mlp", "down")])
def test_residual_multiplier_equals_a_larger_last_matrix(branch: str, last: str) -> None:
    """A branch multiplier of 2 and its last matrix doubled are the same function."""
    tokens = some_tokens(2, 24)
    by_attribute, by_weight = small(), small()
    setattr(by_attribute.blocks[1], f"{branch}_multiplier", 2.0)
    with torch.no_grad():
        getattr(getattr(by_weight.blocks[1], branch), last).weight.mul_(2.0)

    assert torch.equal(by_attribute(tokens), by_weight(tokens))
    assert not torch.equal(by_attribute(tokens), small()(tokens))


def test_attention_and_norms_match_a_plain_computation() -> None:
    """One block equals the equations written out with an explicit mask and softmax."""
    model, tokens = small(), some_tokens(2, 7)
    with torch.no_grad():
        for name, gain in model.named_parameters():
            if name.endswith("norm.weight"):
                gain.normal_(1.0, 0.2)
    block = model.blocks[0]
    x = model.embedding(tokens)
    cos, sin = rope_tables(7, 16, 10_000.0, x)

    def norm(x: Tensor, layer: RMSNorm) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * layer.weight

    h = norm(x, block.attn_norm)
    heads = []
    for head in range(2):
        part = slice(16 * head, 16 * head + 16)
        q, k, v = (h @ getattr(block.attn, m).weight[part].T for m in "qkv")
        q, k = rotate(norm(q, block.attn.q_norm), cos, sin), rotate(norm(k, block.attn.k_norm), cos, sin)
        scores = (q @ k.transpose(1, 2) / 4.0).masked_fill(torch.ones(7, 7).triu(1).bool(), -torch.inf)
        heads.append(scores.softmax(-1) @ v)
    expected = x + torch.cat(heads, -1) @ block.attn.o.weight.T
    hidden = nn.functional.gelu(norm(expected, block.mlp_norm) @ block.mlp.up.weight.T)
    expected = expected + hidden @ block.mlp.down.weight.T

    torch.testing.assert_close(expected, block(x, cos, sin))


def test_module_types_are_the_documented_thirteen() -> None:
    """Every tensor's module has one of the names that HP groups are made of; none has a bias."""
    types = {name.split(".")[-2] for name, _ in small().named_parameters()}

    assert types == {
        *("embedding", "q", "k", "v", "o", "q_norm", "k_norm", "attn_norm"),
        *("up", "down", "mlp_norm", "final_norm", "unembedding"),
    }
    assert {name.split(".")[-1] for name, _ in small().named_parameters()} == {"weight"}


def test_qk_norm_gains_keep_their_shape_as_width_grows() -> None:
    """Width adds heads; the QK-norm gains stay of head size."""
    for width in (32, 128):
        attn = build_transformer(Scale(width=width, depth=1)).blocks[0].attn

        assert attn.q_norm.weight.shape == attn.k_norm.weight.shape == (16,)


def test_initial_spread_is_the_documented_one() -> None:
    """Embedding std 1, matrices fan_in^-1/2, gains exactly 1."""
    torch.manual_seed(0)
    for name, weight in build_transformer(Scale(width=64, depth=1)).named_parameters():
        if weight.ndim == 1:
            assert torch.equal(weight, torch.ones_like(weight)), name
        else:
            expected = 1.0 if "unembedding" not in name and "embedding" in name else weight.size(1) ** -0.5

            assert weight.std().item() == pytest.approx(expected, rel=0.05), name


def test_initial_loss_is_that_of_guessing() -> None:
    """Untrained, the loss lies near ln 256 plus half the variance 1 of the logits."""
    tokens = some_tokens(8, 65)
    logits = small()(tokens[:, :-1])
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    assert loss.item() == pytest.approx(5.545 + 0.5, abs=0.2)


def test_model_works_on_the_meta_device() -> None:
    """Built on meta it has shapes; given memory and weights it computes what a plain build computes."""
    with torch.device("meta"):
        model = build_transformer(Scale(width=32, depth=2)).double()
        shape = model(torch.zeros(2, 24, dtype=torch.long)).shape
    plain = small()
    model.to_empty(device="cpu").load_state_dict(plain.state_dict())

    assert (2, 24, 256) == shape
    assert torch.equal(plain(some_tokens(2, 24)), model(some_tokens(2, 24)))


def test_model_traces_as_one_graph() -> None:
    """torch.compile sees the whole model without a break, and its graph gives the same logits."""
    model, tokens = small(), some_tokens(2, 24)
    compiled = torch.compile(model, fullgraph=True, backend="eager")

    torch.testing.assert_close(model(tokens), compiled(tokens))


def test_bfloat16_autocast_gives_nearly_the_same_logits() -> None:
    """In mixed precision the model runs without a cast that torch warns of, and stays near full precision."""
    model, tokens = small(torch.float32), some_tokens(2, 24)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(tokens)

    torch.testing.assert_close(model(tokens), mixed.float(), atol=0.1, rtol=0)


@pytest.mark.parametrize(
    ("build", "word"),
    [
        (lambda: build_transformer(Scale(width=40, depth=2)), "width = 40"),
        (lambda: build_transformer(Scale(width=8, depth=2)), "width = 8"),
        (lambda: build_transformer(Scale(width=32)), "'depth'"),
        (lambda: build_transformer(Scale(depth=2)), "'width'"),
        (lambda: build_transformer(Scale(width=32, depth=1.5)), "depth is 1.5"),
        (lambda: build_transformer(Scale(width=30, depth=1), head_size=15), "head_size = 15"),
        (lambda: TransformerConfig(width=32, depth=1, vocab_size=0), "vocab_size is 0"),
    ],
)
def test_impossible_sizes_are_named(build: object, word: str) -> None:
    """A size that makes no model is refused with its name and value."""
    with pytest.raises(TransferError) as error:
        build()  # type: ignore[operator]

    assert word in str(error.value)
