"""Adapters: a trained model whose weights are frozen, with few new tensors that are trained instead.

- `lora` (2106.09685): y = W x + α/√r · B A x, with the scale of rsLoRA (2312.03732); by the library peft.
- `ether` (2405.20271): y = W H x, where H = I - 2 u uᵀ, |u| = 1, reflects each of a number of blocks of x. It
  leaves the size of x as it is, whatever the learning rate.
- `smoa` (2601.07507): y = (W + α/√r · sum of W_k ∘ (B_k A_k)) x, where the W_k are parts of W: its singular
  values in as many groups of equal sum. An update has a higher rank than B_k A_k.

New tensors that are added to what the frozen model computes are 0 at first, so that training starts there; a
reflection cannot be none.

Symbols, as suffixes of names (shapes):
    I, O: Inputs and outputs of a layer.
    P: Parts: blocks of `ether`, groups of singular values of `smoa`.
    R: Rank.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transfer_bo.errors import TrainingError
from transfer_bo.scale import Scale

__all__ = ["ROLES", "AdapterConfig", "adapted", "add_adapters", "weights_file"]

ROLES: Mapping[str, Mapping[str, str]] = {
    "lora": {},
    "ether": {"*.ether_u": "modulation"},
    "smoa": {"*.smoa_a": "modulation", "*.smoa_b": "adapter_up"},
}
"""By method, the roles of its tensors that a parametrization is to be given; it finds others itself."""


@dataclass(frozen=True)
class AdapterConfig:
    """Which adapters a model gets.

    Raises:
        TrainingError: for an unknown method, no layers, or sizes that are no positive whole numbers.
    """

    method: str = "lora"
    """"lora", "ether" or "smoa"."""
    rank: int = 8
    """R, of lora and smoa."""
    alpha: float = 1.0
    """Of lora and smoa: updates are multiplied by alpha / √rank."""
    parts: int = 4
    """P, of ether and smoa."""
    layers: tuple[str, ...] = ("q", "k", "v", "o", "up", "down")
    """Names of the linear layers that get one."""

    def __post_init__(self) -> None:
        """Check the values."""
        if self.method not in ROLES:
            raise TrainingError(f"Adapter {self.method!r} is unknown; use one of {', '.join(ROLES)}.")
        for name in ("rank", "parts"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise TrainingError(f"The adapter's {name} is {value!r}; set it to a positive whole number.")
        if not self.layers:
            raise TrainingError("No layers are named for adapters; name some, e.g. q and v.")


class Ether(nn.Module):
    """A frozen linear layer behind reflections of P blocks of its input.

    Raises:
        TrainingError: if the input cannot be divided into as many blocks.
    """

    def __init__(self, layer: nn.Linear, parts: int) -> None:
        super().__init__()
        if layer.in_features % parts:
            raise TrainingError(
                f"A layer with {layer.in_features} inputs cannot be reflected in {parts} blocks; "
                "set adapter.parts to a divisor of it."
            )
        self.layer = layer
        self.ether_u = nn.Parameter(torch.randn(parts, layer.in_features // parts))

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output."""
        u_PI = F.normalize(self.ether_u, dim=-1)
        blocks = x.reshape(*x.shape[:-1], *u_PI.shape)
        reflected = blocks - 2 * (blocks * u_PI).sum(-1, keepdim=True) * u_PI
        out: Tensor = self.layer(reflected.flatten(-2))
        return out


class Smoa(nn.Module):
    """A frozen linear layer with a low-rank modulation of each of P spectral parts of its weight."""

    weight_parts: Tensor
    """W_k."""

    def __init__(self, layer: nn.Linear, parts: int, rank: int, scale: float) -> None:
        super().__init__()
        self.layer, self.scale = layer, scale
        self.smoa_a = nn.Parameter(torch.randn(parts, rank, layer.in_features))
        self.smoa_b = nn.Parameter(torch.zeros(parts, layer.out_features, rank))
        self.register_buffer("weight_parts", spectral_parts(layer.weight.detach(), parts), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output."""
        change_OI = (self.weight_parts * (self.smoa_b @ self.smoa_a)).sum(0)
        out: Tensor = self.layer(x) + F.linear(x, self.scale * change_OI)
        return out


def spectral_parts(weight_OI: Tensor, parts: int) -> Tensor:
    """P matrices that sum to a weight, each with about the same sum of singular values, the largest first."""
    if weight_OI.is_meta:
        return torch.empty(parts, *weight_OI.shape, device="meta")
    rows, values, columns = torch.linalg.svd(weight_OI, full_matrices=False)
    before = (values.cumsum(0) - values) / values.sum()  # share of the larger ones
    group = (before * parts).long().clamp(max=parts - 1)
    return torch.stack([(rows * values * (group == k)) @ columns for k in range(parts)])


def add_adapters(model: nn.Module, config: AdapterConfig) -> nn.Module:
    """Freeze all tensors of a model, and give the named linear layers adapters; the model, in place.

    Raises:
        TrainingError: for a layer that the model does not have, a rank above its sizes, or if lora is asked
            for and peft is not installed.
    """
    model.requires_grad_(False)
    named = [
        (path, module) for path, module in model.named_modules() if path.rpartition(".")[2] in config.layers
    ]
    found = {path.rpartition(".")[2] for path, _ in named}
    missing = [name for name in config.layers if name not in found]
    if missing:
        raise TrainingError(f"The model has no layer {missing[0]!r} for an adapter; correct adapter.layers.")
    linear: list[tuple[str, nn.Linear]] = []
    for path, module in named:
        if not isinstance(module, nn.Linear):
            raise TrainingError(
                f"Layer {path!r} is a {type(module).__name__}, and adapters are for linear layers; "
                "leave it out of adapter.layers."
            )
        linear.append((path, module))

    smallest = min(min(layer.weight.shape) for _, layer in linear)
    if config.method != "ether" and config.rank > smallest:
        raise TrainingError(
            f"The adapter's rank = {config.rank} is above the width {smallest} of a layer; "
            "set it to at most that."
        )
    if config.method == "lora":
        return _add_lora(model, config)
    scale = config.alpha / config.rank**0.5
    for path, layer in linear:
        new = (
            Ether(layer, config.parts)
            if config.method == "ether"
            else Smoa(layer, config.parts, config.rank, scale)
        )
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, new)
    return model


def _add_lora(model: nn.Module, config: AdapterConfig) -> nn.Module:
    try:
        from peft import LoraConfig, inject_adapter_in_model  # slow to load
    except ImportError:
        raise TrainingError(
            'LoRA adapters need peft; install it with: pip install "transfer-bo[adapters]".'
        ) from None

    settings: dict[str, Any] = {"r": config.rank, "lora_alpha": config.alpha, "use_rslora": True}
    lora = LoraConfig(**settings, target_modules=list(config.layers))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries that peft loads warn of their own deprecations
        inject_adapter_in_model(lora, model)
    return model


def adapted(
    build_model: Callable[[Scale], nn.Module], config: AdapterConfig, weights: str | Path | None
) -> Callable[[Scale], nn.Module]:
    """A function that builds a trained model with adapters; `TrainingError` where its weights are missing.

    On the meta device, where nothing has values, no file is read.

    Args:
        build_model: Gives the model without adapters, and ignores the axis `rank`.
        config: Its rank is replaced by that of the scale, if it has one.
        weights: File of a `state_dict`; axes in braces are filled in, as in "base-{width}.pt". None to keep
            the weights that `build_model` gives.
    """

    def build(scale: Scale) -> nn.Module:
        model = build_model(scale)
        file = None if weights is None else weights_file(weights, scale)
        if file is not None and not any(p.is_meta for p in model.parameters()):
            if not file.is_file():
                raise TrainingError(
                    f"There is no file {file} of trained weights at {scale}; keep them there."
                )
            model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        values = {**vars(config), "rank": scale.get("rank", config.rank)}
        return add_adapters(model, AdapterConfig(**values))

    return build


def weights_file(weights: str | Path, scale: Scale) -> Path:
    """The file of trained weights at a scale.

    Raises:
        TrainingError: if the name has braces that are no axis of the scale.
    """
    try:
        return Path(str(weights).format(**scale))
    except (KeyError, IndexError, ValueError) as error:
        raise TrainingError(
            f"adapter.weights = {str(weights)!r} names {error}, which is no axis; use {', '.join(scale)}."
        ) from None
