"""A tiny Llama and its data, for tests that train it offline on a CPU."""

import torch
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM

from transfer_bo.scale import Scale

BASE = Scale(width=32, depth=2, batch=8, tokens=4096)
TARGET = Scale(width=64, depth=4, batch=8, tokens=8192)
CONTEXT = 16


def build_llama(scale):
    """Heads of size 16, as many as the width holds."""
    heads = scale.width // 16
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=scale.width,
        intermediate_size=2 * scale.width,
        num_hidden_layers=scale.depth,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=64,
    )
    return LlamaForCausalLM(config)


class Counting(Dataset):
    """Sequences that count up, from anywhere."""

    def __len__(self):
        return 64

    def __getitem__(self, index):
        ids = (torch.arange(CONTEXT) + index) % 64
        return {"input_ids": ids, "labels": ids}
