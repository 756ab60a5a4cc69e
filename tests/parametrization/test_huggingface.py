"""Models of Hugging Face, from their configurations alone and without hints."""

import fnmatch
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


# ---------------------------------------------------------------------- kinds that differ from all of these

TOKENS = (torch.arange(16).reshape(2, 8) * 3 + 1) % 19
IMAGES = torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)


def bert(scale):
    """A norm behind every sum; a head with a layer of its own and a bare bias."""
    from transformers import BertConfig, BertForMaskedLM

    return BertForMaskedLM(BertConfig(**_sizes(scale, vocab_size=19, max_position_embeddings=32)))


def t5(scale):
    """An encoder and a decoder that share a tied embedding; residual layers in lists; bias tables."""
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": scale.width, "d_ff": 2 * scale.width, "d_kv": 8, "num_heads": scale.width // 8}
    depths = {"num_layers": scale.depth, "num_decoder_layers": scale.depth}
    return T5ForConditionalGeneration(
        T5Config(**sizes, **depths, vocab_size=19, decoder_start_token_id=0, pad_token_id=0)
    )


def gemma3(scale):
    """Norms before and behind each branch, those behind it outside its module; a cache."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    return Gemma3ForCausalLM(Gemma3TextConfig(**_decoder(scale, query_pre_attn_scalar=8, pad_token_id=None)))


def opt(scale):
    """Layers of the MLP lie in the block itself."""
    from transformers import OPTConfig, OPTForCausalLM

    sizes = {"hidden_size": scale.width, "word_embed_proj_dim": scale.width, "ffn_dim": 2 * scale.width}
    more = {"num_attention_heads": scale.width // 8, "max_position_embeddings": 32, "vocab_size": 19}
    tokens = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    return OPTForCausalLM(OPTConfig(**sizes, **more, **tokens, num_hidden_layers=scale.depth))


def mamba(scale):
    """No attention; low-rank maps, depthwise convolutions, bare tensors; sums kept in float32."""
    from transformers import MambaConfig, MambaForCausalLM

    sizes = {"hidden_size": scale.width, "num_hidden_layers": scale.depth, "state_size": 4, "vocab_size": 19}
    return MambaForCausalLM(MambaConfig(**sizes, time_step_rank=4, bos_token_id=0, eos_token_id=1))


def deepseek_v3(scale):
    """Low-rank queries, keys and values; shared experts beside routed ones."""
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    moe = {"moe_intermediate_size": scale.width, "n_routed_experts": 4, "num_experts_per_tok": 2}
    moe |= {"n_group": 2, "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 0}
    ranks = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4}
    heads = {"v_head_dim": 8, "num_key_value_heads": scale.width // 8, "vocab_size": 19}
    tokens = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
    return DeepseekV3ForCausalLM(DeepseekV3Config(**_sizes(scale), **moe, **ranks, **heads, **tokens))


def clip(scale):
    """Two towers that meet in a product; a bare class token and a bare temperature."""
    from transformers import CLIPConfig, CLIPModel

    tokens = {"vocab_size": 19, "bos_token_id": 0, "eos_token_id": 18, "pad_token_id": 1}
    text = _sizes(scale, **tokens, max_position_embeddings=16)
    vision = _sizes(scale, image_size=16, patch_size=4)
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))


def convnext(scale):
    """Stages of which one gets deeper; depthwise convolutions, a gain per channel."""
    from transformers import ConvNextConfig, ConvNextForImageClassification

    sizes = [scale.width, 2 * scale.width]
    more = {"image_size": 16, "patch_size": 2, "num_labels": 5, "num_stages": 2}
    return ConvNextForImageClassification(ConvNextConfig(hidden_sizes=sizes, depths=[1, scale.depth], **more))


_LAYERS = {"*.weight": "hidden_weight", "*.bias": "hidden_bias"}
# First match wins. Rule, inputs, branches, roles.
UNNAMED = {
    bert: (
        "mup",
        None,
        (),
        {
            "*.word_embeddings.weight": "tied_embedding",
            "*.position_embeddings.weight": "position_embedding",
            "*.token_type_embeddings.weight": "position_embedding",
            "bert.embeddings.LayerNorm.*": "input_bias",
            "cls.predictions.bias": "output_bias",
            "cls.*.LayerNorm.*": "final_norm",
            "*.LayerNorm.*": "norm_gain",
            **_LAYERS,
        },
    ),
    t5: (
        "complete_d_p",
        (TOKENS, torch.ones_like(TOKENS), TOKENS),
        ("SelfAttention", "DenseReluDense", "EncDecAttention"),
        {
            "shared.weight": "tied_embedding",
            "*.relative_attention_bias.weight": "narrow_to_wide",
            "encoder.final_layer_norm.weight": "norm_gain",
            "decoder.final_layer_norm.weight": "final_norm",
            "*.layer_norm.weight": "norm_gain",
            **_LAYERS,
        },
    ),
    gemma3: (
        "complete_d_p",
        None,
        ("self_attn", "mlp"),
        {
            "*.embed_tokens.weight": "tied_embedding",
            "*.[qk]_norm.weight": "qk_norm",
            "model.norm.weight": "final_norm",
            "*layernorm.weight": "norm_gain",
            **_LAYERS,
        },
    ),
    opt: (
        "complete_d_p",
        None,
        ("self_attn", "fc2"),
        {
            "*.embed_tokens.weight": "tied_embedding",
            "*.embed_positions.weight": "position_embedding",
            "*.decoder.final_layer_norm.*": "final_norm",
            "*layer_norm.*": "norm_gain",
            **_LAYERS,
        },
    ),
    mamba: (
        "complete_d_p",
        None,
        ("mixer",),
        {
            "*.embeddings.weight": "tied_embedding",
            "*.norm_f.weight": "final_norm",
            "*.norm.weight": "norm_gain",
            "*.A_log": "hidden_bias",
            "*.D": "norm_gain",
            "*.conv1d.weight": "narrow_to_wide",
            "*.x_proj.weight": "wide_to_narrow",
            "*.dt_proj.weight": "narrow_to_wide",
            **_LAYERS,
        },
    ),
    deepseek_v3: (
        "complete_d_p",
        None,
        ("self_attn", "mlp"),
        {
            "*.embed_tokens.weight": "input_embedding",
            "lm_head.weight": "unembedding",
            "model.norm.weight": "final_norm",
            "*_a_layernorm.weight": "qk_norm",
            "*layernorm.weight": "norm_gain",
            "*_a_proj*.weight": "wide_to_narrow",
            "*_b_proj.weight": "narrow_to_wide",
            "*.mlp.gate.weight": "router",
            "*.experts.gate_up_proj": "expert_up",
            "*.experts.down_proj": "expert_down",
            "*.shared_experts.*": "hidden_weight",
            **_LAYERS,
        },
    ),
    clip: (
        "complete_d_p",
        (TOKENS, IMAGES),
        ("self_attn", "mlp"),
        {
            "logit_scale": "fixed",
            "*.token_embedding.weight": "input_embedding",
            "*.patch_embedding.weight": "input_embedding",
            "*.class_embedding": "input_embedding",
            "*.position_embedding.weight": "position_embedding",
            "*.pre_layrnorm.*": "input_bias",
            "*.post_layernorm.*": "final_norm",
            "*.final_layer_norm.*": "final_norm",
            "*_projection.weight": "unembedding",
            "*.layer_norm?.*": "norm_gain",
            **_LAYERS,
        },
    ),
    convnext: (
        "complete_d_p",
        None,
        ("pwconv2",),
        {
            "*.patch_embeddings.weight": "input_embedding",
            "*.patch_embeddings.bias": "input_bias",
            "*.embeddings.layernorm.*": "input_bias",
            "convnext.layernorm.*": "final_norm",
            "classifier.weight": "unembedding",
            "classifier.bias": "output_bias",
            "*.downsampling_layer.1.weight": "conv_kernel",
            "*.downsampling_layer.0.*": "norm_gain",
            "*.layer_scale_parameter": "norm_gain",
            "*.stages.0.layers.0.layernorm.*": "input_bias",  # before any weight from width to width
            "*.layernorm.*": "norm_gain",
            "*.dwconv.weight": "narrow_to_wide",
            **_LAYERS,
        },
    ),
}


@pytest.mark.parametrize("build", UNNAMED)
def test_other_families(build):
    """Models of other kinds need no hint either: every tensor's role, and the branches of their blocks."""
    rule, inputs, branches, roles = UNNAMED[build]
    p = parametrize(build, BASE, TARGET, rule, inputs=inputs)
    expected = {
        name: next(role for pattern, role in roles.items() if fnmatch.fnmatchcase(name, pattern))
        for name in p.tensors
    }

    assert expected == {name: str(t.role) for name, t in p.tensors.items()}
    assert branches == p.residual_branches
