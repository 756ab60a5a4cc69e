"""Models of Hugging Face, from their configurations alone and without hints."""

import os

import pytest
import torch

from transfer_bo.parametrization import parametrize
from transfer_bo.scale import Scale

os.environ.setdefault("HF_HUB_OFFLINE", "1")
pytest.importorskip("transformers", reason="needs the extra `hf`")

BASE = Scale(width=32, depth=2)
TARGET = Scale(width=64, depth=4)


def _sizes(scale, **more):
    sizes = {
        "hidden_size": scale.width,
        "intermediate_size": 2 * scale.width,
        "num_hidden_layers": scale.depth,
        "num_attention_heads": scale.width // 8,
    }
    return {**sizes, **more}


def _decoder(scale, **more):
    return (
        _sizes(
            scale,
            vocab_size=19,
            num_key_value_heads=scale.width // 16,
            head_dim=8,
            bos_token_id=0,
            eos_token_id=1,
        )
        | more
    )


def gpt2(scale):
    """Tied, learned positions, (in, out) weights, fused queries, keys and values."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_embd": scale.width, "n_layer": scale.depth, "n_head": scale.width // 8, "n_positions": 16}
    return GPT2LMHeadModel(GPT2Config(**sizes, vocab_size=19, bos_token_id=0, eos_token_id=1))


def llama(scale):
    """Grouped queries, rotary positions in a buffer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**_decoder(scale)))


def llama_one_key_head(scale):
    """One key and value head at every width."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**_decoder(scale, num_key_value_heads=1)))


def qwen3(scale):
    """Norms of queries and keys."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(Qwen3Config(**_decoder(scale)))


def mixtral(scale):
    """Fused experts."""
    from transformers import MixtralConfig, MixtralForCausalLM

    return MixtralForCausalLM(MixtralConfig(**_decoder(scale, num_local_experts=4)))


def qwen3_moe(scale):
    """Fused experts and norms of queries and keys."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    moe = {"moe_intermediate_size": scale.width, "num_experts": 4, "num_experts_per_tok": 2}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**_decoder(scale, **moe)))


def vit(scale):
    """Images, a bare class token and bare positions."""
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig(**_sizes(scale), image_size=16, patch_size=4, num_labels=5))


_LLAMA = {
    "model.embed_tokens.weight": "input_embedding",
    **{f"self_attn.{x}_proj.weight": "hidden_weight" for x in "qkvo"},
    **{f"mlp.{x}_proj.weight": "hidden_weight" for x in ("gate", "up", "down")},
    "input_layernorm.weight": "norm_gain",
    "post_attention_layernorm.weight": "norm_gain",
    "model.norm.weight": "final_norm",
    "lm_head.weight": "unembedding",
}
_QK = {"self_attn.q_norm.weight": "qk_norm", "self_attn.k_norm.weight": "qk_norm"}
_MOE = {
    **{name: role for name, role in _LLAMA.items() if "mlp" not in name},
    "mlp.gate.weight": "router",
    "mlp.experts.gate_up_proj": "expert_up",
    "mlp.experts.down_proj": "expert_down",
}
_GPT2_BLOCK = {
    f"{layer}.{kind}": role[kind]
    for layer, role in {
        "ln_1": {"weight": "norm_gain", "bias": "norm_gain"},
        "ln_2": {"weight": "norm_gain", "bias": "norm_gain"},
        **{
            layer: {"weight": "hidden_weight", "bias": "hidden_bias"}
            for layer in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
        },
    }.items()
    for kind in ("weight", "bias")
}
_VIT_BLOCK = {
    f"{layer}.{kind}": role
    for layer in (*(f"attention.{x}_proj" for x in "qkvo"), "mlp.fc1", "mlp.fc2")
    for kind, role in (("weight", "hidden_weight"), ("bias", "hidden_bias"))
}
EXPECTED = {
    gpt2: {
        "transformer.wte.weight": "tied_embedding",
        "transformer.wpe.weight": "position_embedding",
        **_GPT2_BLOCK,
        "transformer.ln_f.weight": "final_norm",
        "transformer.ln_f.bias": "final_norm",
    },
    llama: _LLAMA,
    llama_one_key_head: {
        **_LLAMA,
        "self_attn.k_proj.weight": "wide_to_narrow",
        "self_attn.v_proj.weight": "wide_to_narrow",
    },
    qwen3: {**_LLAMA, **_QK},
    mixtral: _MOE,
    qwen3_moe: {**_MOE, **_QK},
    vit: {
        "vit.embeddings.cls_token": "input_embedding",
        "vit.embeddings.position_embeddings": "position_embedding",
        "vit.embeddings.patch_embeddings.projection.weight": "input_embedding",
        "vit.embeddings.patch_embeddings.projection.bias": "input_bias",
        **_VIT_BLOCK,
        **{f"layernorm_{at}.{x}": "norm_gain" for at in ("before", "after") for x in ("weight", "bias")},
        "vit.layernorm.weight": "final_norm",
        "vit.layernorm.bias": "final_norm",
        "classifier.weight": "unembedding",
        "classifier.bias": "output_bias",
    },
}
_BRANCHES = {gpt2: ("attn", "mlp"), vit: ("attention", "mlp")}


def _inner(p, name):
    block = p.tensors[name].block
    return name if block is None else name.removeprefix(f"{block}.")


@pytest.mark.parametrize("build", EXPECTED)
def test_roles_and_branches(build):
    """Every tensor has the role that its name says, and both branches of a block are found."""
    p = parametrize(build, BASE, TARGET)

    assert EXPECTED[build] == {_inner(p, name): str(t.role) for name, t in p.tensors.items()}
    assert _BRANCHES.get(build, ("self_attn", "mlp")) == p.residual_branches
    assert {1.0, 2.0} == {t.depth for t in p.tensors.values()}


@pytest.mark.parametrize("build", [gpt2, llama, vit])
def test_a_model_from_the_meta_device(build):
    """Values and buffers (rotary frequencies) are as in a model that was built with memory."""
    p = parametrize(build, BASE, TARGET)
    usual = build(TARGET).eval()
    with torch.device("meta"):
        empty = build(TARGET).eval()
    empty.to_empty(device="cpu")
    empty.tie_weights()  # torch's to_empty unties
    for model in (usual, empty):
        p.initialize(model, seed=1)
    x = torch.rand(2, 3, 16, 16) if build is vit else torch.arange(12).reshape(2, 6)

    assert torch.equal(usual(x).logits, empty(x).logits)


@pytest.mark.parametrize("build", [gpt2, mixtral])
def test_base_is_the_model_itself(build):
    """At the base nothing is changed and nothing is registered."""
    p = parametrize(build, BASE, BASE)
    torch.manual_seed(3)
    plain, ours = build(BASE), build(BASE)
    p.initialize(ours, seed=3)

    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), ours.parameters(), strict=True))
    assert 1 == len(p.param_groups(ours))
