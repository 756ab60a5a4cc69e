"""torchtitan (0.3 and later): `OptimizersContainer.Config` with a `ParamGroupConfig` per group.

Patterns are regular expressions on tensor names, the first match counts, and each must match something.
"""

from __future__ import annotations

import re
from typing import Any

from transfer_bo.integrations.plan import Group, Plan, numbered_patterns
from transfer_bo.quantities import counted

__all__ = ["torchtitan_config", "torchtitan_text"]

_NAMES = {"adamw": "AdamW", "adam": "Adam"}
"""torchtitan's optimizers that take the same options as torch's."""

_WRAPPERS = r"(?:_checkpoint_wrapped_module\.|_orig_mod\.)*"
"""Parts of names that activation checkpointing and torch.compile add."""


def torchtitan_config(plan: Plan, max_norm: float) -> tuple[dict[str, Any], list[str]]:
    """The configuration as plain values, and what it cannot express.

    Args:
        plan: What is to be set.
        max_norm: Of the clipped gradient.
    """
    groups, notes = [], list(plan.notes)
    for group in plan.groups:
        if group.optimizer not in _NAMES:
            notes.append(
                f"Optimizer {group.optimizer!r} of {counted(len(group.tensors), 'tensor')} "
                f"({group.name}) has other "
                "options in torchtitan: write that group by hand."
            )
            continue
        groups.append(
            {
                "pattern": _pattern(group, plan),
                "optimizer_name": _NAMES[group.optimizer],
                "optimizer_kwargs": dict(group.options),
            }
        )
    if len(groups) > 1:
        notes.append(
            "With pipeline parallelism, leave out of each part the groups that match no tensor there."
        )

    training: dict[str, Any] = {"max_norm": max_norm}
    if plan.batch is not None:
        training["global_batch_size"] = plan.batch
    return {"optimizer": {"param_groups": groups}, "training": training}, notes


def _pattern(group: Group, plan: Plan) -> str:
    others = [name for other in plan.groups if other is not group for name in other.tensors]
    separator = r"\." + _WRAPPERS
    names = [
        separator.join(r"\d+" if part == "*" else re.escape(part) for part in name.split("."))
        for name in numbered_patterns(group.tensors, others)
    ]
    return f"^{_WRAPPERS}(?:{'|'.join(names)})$"


def torchtitan_text(config: dict[str, Any]) -> str:
    """The configuration as Python, for a function of a config registry."""
    groups = "".join(
        f"        ParamGroupConfig(\n"
        f"            pattern={group['pattern']!r},\n"
        f"            optimizer_name={group['optimizer_name']!r},\n"
        f"            optimizer_kwargs={group['optimizer_kwargs']!r},\n"
        f"        ),\n"
        for group in config["optimizer"]["param_groups"]
    )
    training = "".join(f"config.training.{key} = {value!r}\n" for key, value in config["training"].items())
    return (
        "from torchtitan.components.optimizer import OptimizersContainer, ParamGroupConfig\n\n"
        f"config.optimizer = OptimizersContainer.Config(\n    param_groups=[\n{groups}    ],\n)\n{training}"
    )
