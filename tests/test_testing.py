"""The conformance suite: our own models pass it, and a wrong rule does not."""

import dataclasses
import os
from types import MappingProxyType

import pytest
import torch
from torch import nn

from transfer_bo.errors import ParametrizationError
from transfer_bo.parametrization import COMPLETE_D_P, RULES, Role
from transfer_bo.scale import Scale
from transfer_bo.testing import ParametrizationSuite
from transfer_bo.training.model import build_transformer

os.environ.setdefault("HF_HUB_OFFLINE", "1")


class Reference(ParametrizationSuite):
    """The reference transformer, narrow."""

    base = Scale(width=32, depth=4)
    target = Scale(width=64, depth=8)
    factors = (1, 4)
    expected_roles = MappingProxyType(
        {"blocks.*.attn.?.weight": "hidden_weight", "embedding.weight": "input_embedding"}
    )

    def build_model(self, scale):
        """Small heads and vocabulary."""
        return build_transformer(scale, vocab_size=32, head_size=8)


class TestReference(Reference):
    """Under Complete(d)P."""


class TestLlama(ParametrizationSuite):
    """A model of Hugging Face, as it comes."""

    base = Scale(width=32, depth=4)
    target = Scale(width=64, depth=4)
    factors = (1, 4)

    def build_model(self, scale):
        """Grouped queries."""
        transformers = pytest.importorskip("transformers", reason="needs the extra `hf`")
        config = transformers.LlamaConfig(
            hidden_size=scale.width,
            intermediate_size=2 * scale.width,
            num_hidden_layers=scale.depth,
            num_attention_heads=scale.width // 8,
            num_key_value_heads=scale.width // 16,
            head_dim=8,
            vocab_size=32,
            bos_token_id=0,
            eos_token_id=1,
        )
        return transformers.LlamaForCausalLM(config)


class TestMlpUnderMupSgd(ParametrizationSuite):
    """Neither a transformer nor AdamW nor a depth."""

    base = Scale(width=64)
    target = Scale(width=256)
    rule = "mup_sgd"
    hps = MappingProxyType({"lr": 0.05, "weight_decay": 0.0})
    inputs = (torch.linspace(-1, 1, 64).reshape(16, 4),)

    def build_model(self, scale):
        """Two hidden layers."""
        n = scale.width
        return nn.Sequential(nn.Linear(4, n), nn.ReLU(), nn.Linear(n, n), nn.ReLU(), nn.Linear(n, 3))


class TestTableOnly(Reference):
    """A rule for an optimizer that torch does not have has roles and a base, and nothing to train."""

    rule = "shampoo"


def _rule(**rows):
    changed = {
        Role(role): dataclasses.replace(COMPLETE_D_P.rows[Role(role)], **row) for role, row in rows.items()
    }
    return dataclasses.replace(COMPLETE_D_P, name="wrong", rows={**COMPLETE_D_P.rows, **changed})


def test_a_wrong_rule_does_not_pass():
    """Hidden learning rates that ignore the width fail the coordinate check."""
    suite = Reference()
    suite.rule = RULES["sp"]
    suite.base, suite.target = Scale(width=32), Scale(width=64)
    suite.build_model = lambda scale: build_transformer(
        Scale(width=scale.width, depth=1), vocab_size=32, head_size=8
    )
    with pytest.raises(AssertionError, match=r"own.* grows"):
        suite.test_coordinate_check()


def test_a_row_that_is_missing_does_not_pass():
    """A rule without a row for one of the model's roles is refused."""
    suite = Reference()
    rows = {role: row for role, row in COMPLETE_D_P.rows.items() if role is not Role.QK_NORM}
    suite.rule = dataclasses.replace(COMPLETE_D_P, rows=rows)
    with pytest.raises(ParametrizationError) as error:
        suite.test_every_tensor_has_a_role()

    assert "'qk_norm'" in str(error.value)


def test_a_wrong_expectation_does_not_pass():
    """A role that is expected but not found is named with the tensor."""
    suite = Reference()
    suite.expected_roles = {"unembedding.*": "router"}
    with pytest.raises(AssertionError, match=r"unembedding\.\* is to be router"):
        suite.test_every_tensor_has_a_role()


def test_a_suite_without_a_model():
    """Calling the suite's own build function names the method to define."""
    with pytest.raises(NotImplementedError, match="build_model"):
        ParametrizationSuite().build_model(Scale(width=1))
