"""Which runs of a study file share a trunk (`[training] trunk = true`), where it is kept, and their seed.

Rungs that differ in tokens only share the stable part of one run for each setting of the HPs. For that the
warm-up has as many steps as that of the first such rung in the file, and the rule's dependence on duration is
left out: the drift of the optima with tokens is learned instead.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from transfer_bo.parametrization import Rule
from transfer_bo.parametrization.rules import Power, RoleExponents
from transfer_bo.runners.attempt import Attempt
from transfer_bo.scale import Scale
from transfer_bo.study_file import StudyFile
from transfer_bo.training.settings import TrainSettings
from transfer_bo.training.trunk import Trunk

__all__ = ["settings_of", "steps_of", "trunk_of", "trunk_seed", "without_duration"]

TRUNK_SEEDS = 10**10
"""Where the seeds of runs that share a trunk begin, above those of all other runs."""


def without_duration(rule: Rule) -> Rule:
    """A rule that sets every tensor alike whatever the number of tokens."""

    def at_any_length(power: Power) -> Power:
        return replace(power, tokens=0.0)

    def row_at_any_length(row: RoleExponents) -> RoleExponents:
        return RoleExponents(**{name: at_any_length(power) for name, power in vars(row).items()})

    return replace(
        rule,
        rows={role: row_at_any_length(row) for role, row in rule.rows.items()},
        every=row_at_any_length(rule.every),
        one_minus_beta=at_any_length(rule.one_minus_beta),
    )


def steps_of(study_file: StudyFile, scale: Scale) -> int:
    """Number of steps of a run, as in `training.train`."""
    return max(1, round(float(scale.tokens) / (float(scale.batch) * study_file.data.context)))


def settings_of(study_file: StudyFile, scale: Scale) -> TrainSettings:
    """How a run is trained; runs that may share a trunk have the warm-up of the first rung among them."""
    settings = TrainSettings(**study_file.training.settings())
    if not study_file.training.trunk:
        return settings
    first = next((rung for rung in study_file.proxies if _is_alike(rung, scale)), scale)
    return replace(settings, warmup_steps=settings.warmup_of(steps_of(study_file, first)))


def trunk_of(study_file: StudyFile, attempt: Attempt) -> Trunk:
    """Where the trunk of a run is kept."""
    lengths = {steps_of(study_file, rung) for rung in study_file.proxies if _is_alike(rung, attempt.scale)}
    settings = settings_of(study_file, attempt.scale)
    ends = tuple(sorted(settings.stable_end(steps) for steps in lengths))
    return Trunk(study_file.checkpoints / f"trunk-{_key(study_file, attempt.scale, attempt.hps)}", ends)


def trunk_seed(study_file: StudyFile, scale: Scale, hps: Mapping[str, float]) -> int:
    """The seed of all runs that share a trunk."""
    return TRUNK_SEEDS + int(_key(study_file, scale, hps)[:8], 16)


def _is_alike(scale: Scale, other: Scale) -> bool:
    return scale.replace(tokens=other.tokens) == other


def _key(study_file: StudyFile, scale: Scale, hps: Mapping[str, Any]) -> str:
    axes = {axis: value for axis, value in scale.items() if axis != "tokens"}
    text = json.dumps([study_file.seed, axes, dict(hps)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
