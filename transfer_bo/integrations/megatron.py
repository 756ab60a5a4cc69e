"""Megatron-core (0.16 and later): an `OptimizerConfig` and `config_overrides` for groups of tensors.

The scheduler reads max_lr, min_lr and wd_mult of a group; betas and eps reach the optimizer as they are.
Checkpoints tell groups apart by (wd_mult, lr_mult), so lr_mult is written although the scheduler ignores it.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from transfer_bo.integrations.plan import DIGITS, Plan, numbered_patterns
from transfer_bo.quantities import counted

__all__ = ["megatron_config", "megatron_text"]

_PREFIXES = ("", "module.", "module.module.")
"""What Megatron's wrappers put before the names of a model chunk."""


def megatron_config(plan: Plan, max_norm: float) -> tuple[dict[str, Any], list[str]]:
    """The configuration as plain values, and what it cannot express.

    Args:
        plan: What is to be set.
        max_norm: Of the clipped gradient.
    """
    notes = list(plan.notes)
    groups = [group for group in plan.groups if group.optimizer == "adamw"]
    for group in plan.groups:
        if group.optimizer != "adamw":
            notes.append(
                f"Optimizer {group.optimizer!r} of {counted(len(group.tensors), 'tensor')} "
                f"({group.name}) has other "
                "options in Megatron: set that group by hand."
            )
    largest = max(groups, key=lambda group: len(group.tensors)) if groups else None
    common: dict[str, Any] = {"lr": 0.0, "weight_decay": 0.0, "betas": (0.9, 0.95), "eps": 1e-8}
    common |= dict(largest.options) if largest else {}
    lr, decay = common["lr"] or 1.0, common["weight_decay"] or 1.0

    overrides = []
    for group in groups:
        others = [name for other in groups if other is not group for name in other.tensors]
        names = numbered_patterns(group.tensors, others)
        options = group.options
        override = {
            "max_lr": options["lr"],
            "min_lr": 0.0,
            "lr_mult": options["lr"] / lr,
            "wd_mult": options["weight_decay"] / decay,
            "betas": options["betas"],
            "eps": options["eps"],
        }
        overrides.append({"name": [f"{prefix}{name}" for name in names for prefix in _PREFIXES], **override})

    if any(count > 1 for count in Counter((o["wd_mult"], o["lr_mult"]) for o in overrides).values()):
        notes.append(
            "Groups that differ in betas or eps alone are one to Megatron's checkpoints: keep their order."
        )
    if _by_block(plan):
        notes.append(
            "Settings differ between blocks, and Megatron numbers blocks anew in each pipeline stage: "
            "use one stage."
        )
    notes.append("min_lr is 0 in every group: where a schedule ends above 0, set it in proportion to max_lr.")
    config: dict[str, Any] = {
        "optimizer_config": {
            "optimizer": "adam",
            "lr": common["lr"],
            "min_lr": 0.0,
            "weight_decay": decay,
            "adam_beta1": common["betas"][0],
            "adam_beta2": common["betas"][1],
            "adam_eps": common["eps"],
            "clip_grad": max_norm,
        },
        "config_overrides": overrides,
    }
    if plan.batch is not None:
        config["global_batch_size"] = plan.batch
    return config, notes


def _by_block(plan: Plan) -> bool:
    """Whether tensors of one place in different blocks are in different groups."""
    places = [{DIGITS.sub("*", name) for name in group.tensors} for group in plan.groups]
    return any(count > 1 for count in Counter(place for of_group in places for place in of_group).values())


def megatron_text(config: dict[str, Any]) -> str:
    """The configuration as Python, for the call of `get_megatron_optimizer`."""
    options = "".join(f"    {key}={value!r},\n" for key, value in config["optimizer_config"].items())
    overrides = "".join(
        f"    ParamKey(name={tuple(override['name'])!r}): "
        f"{ {key: value for key, value in override.items() if key != 'name'}!r},\n"
        for override in config["config_overrides"]
    )
    batch = f"# --global-batch-size {config['global_batch_size']}\n" if "global_batch_size" in config else ""
    return (
        "from megatron.core.optimizer import OptimizerConfig, ParamKey, get_megatron_optimizer\n\n"
        f"config = OptimizerConfig(\n{options})\nconfig_overrides = {{\n{overrides}}}\n"
        f"{batch}optimizer = get_megatron_optimizer(config, model_chunks, config_overrides)\n"
    )
