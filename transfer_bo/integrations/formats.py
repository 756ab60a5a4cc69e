"""A suggestion in the format of a training framework, by the name of the format."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from transfer_bo.errors import ParametrizationError
from transfer_bo.integrations.megatron import megatron_config, megatron_text
from transfer_bo.integrations.plan import Plan, SuggestionLike, make_plan
from transfer_bo.integrations.torchtitan import torchtitan_config, torchtitan_text
from transfer_bo.parametrization import Parametrization

__all__ = ["FORMATS", "Export", "export"]

VERSION = 1
"""Of the JSON format."""


@dataclass(frozen=True)
class Export:
    """A suggestion in some format."""

    format: str
    """Name in `FORMATS`."""
    settings: Any
    """Plain values: parameter groups, keyword arguments, or a configuration."""
    notes: tuple[str, ...]
    """What the format cannot express, one sentence per setting."""
    text: str
    """What to paste or to save: JSON, or Python with the notes as comments."""

    def __str__(self) -> str:
        return self.text


def export(
    suggestion: SuggestionLike,
    p: Parametrization,
    format: str,  # noqa: A002 - the name that users write
    *,
    context: int | None = None,
    max_norm: float = 1.0,
) -> Export:
    """A suggestion's settings of each tensor at its target, in the format of a framework.

    Args:
        suggestion: HPs in base coordinates.
        p: Of the model, at any scale; the suggestion's target is what is exported.
        format: "torch": parameter groups with names of tensors; "hf": keyword arguments of
            `TrainingArguments`, beside `hf.create_optimizer`; "torchtitan" and "megatron": configurations of
            their optimizers; "json": everything, for any other program.
        context: Tokens per sequence, for a batch that is given in tokens.
        max_norm: Largest norm of the gradient, where the framework clips.

    Raises:
        ParametrizationError: for an unknown format, or a model that cannot be parametrized at the target.
        SearchSpaceError: for an HP that the model has no group for.
    """
    if format not in FORMATS:
        raise ParametrizationError(f"Format {format!r} is unknown; use one of {', '.join(FORMATS)}.")
    return FORMATS[format](make_plan(suggestion, p, context), max_norm)


def _torch(plan: Plan, max_norm: float) -> Export:
    groups = [
        {"params": list(group.tensors), "optimizer": group.optimizer, **group.options, "name": group.name}
        for group in plan.groups
    ]
    return Export("torch", groups, tuple(plan.notes), json.dumps(groups, indent=2))


def _json(plan: Plan, max_norm: float) -> Export:
    settings = plan.p.settings(plan.hps)
    tensors = [
        {
            "name": name,
            "role": str(tensor.role),
            "shape": list(tensor.shape),
            "optimizer": settings[name].optimizer,
            **_plain(settings[name].options),
            "init": settings[name].init,
            "forward": settings[name].forward,
        }
        for name, tensor in plan.p.tensors.items()
        if name in settings
    ]
    outputs, inputs = plan.p.hooked_multipliers(plan.hps)

    content = {
        "version": VERSION,
        "rule": plan.p.rule.name,
        "alpha": plan.p.alpha,
        "base": dict(plan.p.base),
        "target": dict(plan.p.target),
        "hps": dict(plan.hps),
        "batch": plan.batch,
        "max_norm": max_norm,
        "tensors": tensors,
        "output_multipliers": {path: factor for path, factor in outputs.items() if factor != 1},
        "input_multipliers": {path: factor for path, factor in inputs.items() if factor != 1},
        "forward_multipliers": plan.p.forward_multipliers(plan.hps),
        "notes": plan.notes,
    }
    return Export("json", content, tuple(plan.notes), json.dumps(content, indent=2))


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with betas as two numbers."""
    betas = dict(zip(("beta1", "beta2"), options.get("betas", ()), strict=False))
    return {key: value for key, value in options.items() if key != "betas"} | betas


def _hf(plan: Plan, max_norm: float) -> Export:
    arguments, notes = _training_arguments(plan)
    return Export("hf", arguments, tuple(notes), _with_notes(f"arguments = {arguments!r}\n", notes))


def _training_arguments(plan: Plan) -> tuple[dict[str, Any], list[str]]:
    """Keyword arguments of `TrainingArguments`, and what they cannot express.

    Learning rate, decay, betas and ε are those of the largest learning rate; what counts are the groups of
    `create_optimizer`. The Trainer's own clipping is switched off, as `Callback` clips.
    """
    first = max(plan.groups, key=lambda group: float(group.options.get("lr", 0.0))).options
    arguments: dict[str, Any] = {
        "learning_rate": first["lr"],
        "weight_decay": first["weight_decay"],
        "max_grad_norm": 0.0,
    }
    if "betas" in first:
        arguments |= {
            "adam_beta1": first["betas"][0],
            "adam_beta2": first["betas"][1],
            "adam_epsilon": first["eps"],
        }
    notes = [
        *(note for note in plan.notes if "p.clip_grad_norm_" not in note),
        f"{len(plan.groups)} groups have settings of their own: give the Trainer optimizers="
        "(hf.create_optimizer(p, model, hps), None) and callbacks=[hf.Callback(p)], which clips.",
    ]
    if plan.batch is not None:
        arguments["per_device_train_batch_size"] = plan.batch
        notes.append(
            "per_device_train_batch_size is the whole batch: divide it by the number of devices and by "
            "gradient_accumulation_steps."
        )
    return arguments, notes


def _torchtitan(plan: Plan, max_norm: float) -> Export:
    config, notes = torchtitan_config(plan, max_norm)
    return Export("torchtitan", config, tuple(notes), _with_notes(torchtitan_text(config), notes))


def _megatron(plan: Plan, max_norm: float) -> Export:
    config, notes = megatron_config(plan, max_norm)
    return Export("megatron", config, tuple(notes), _with_notes(megatron_text(config), notes))


def _with_notes(text: str, notes: list[str]) -> str:
    return "".join(f"# {note}\n" for note in notes) + text


FORMATS: Mapping[str, Callable[[Plan, float], Export]] = {
    "torch": _torch,
    "hf": _hf,
    "torchtitan": _torchtitan,
    "megatron": _megatron,
    "json": _json,
}
"""Formats by name."""
