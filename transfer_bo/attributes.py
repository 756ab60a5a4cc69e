"""Every key that is stored on a study or a trial, in one place.

The keys are a file format: a study of an earlier release must open, so a key is never renamed and never
given another meaning. A key that only later releases know is ignored.

Trials also hold two things without a key of their own: the parameter `RUNG`, and the losses reported during
a run, whose steps are thousandths of it (`PROGRESS_STEPS`).
"""

from __future__ import annotations

__all__ = [
    "ACCUMULATE_ATTR",
    "ADDED_SOURCE_PREFIX",
    "ATTR_PREFIX",
    "BEAT_ATTR",
    "CONTROL_ATTR",
    "DEFINITION_ATTR",
    "ERROR_ATTR",
    "FIXED_PARAMS_ATTR",
    "FORMAT_ATTR",
    "FORMAT_VERSION",
    "HASH_ATTR",
    "OPTIMIZER_ATTR",
    "OUTCOME_ATTR",
    "OWNER_LOSSES_ATTR",
    "PARAMS_ATTR",
    "PREDICTION_ATTR",
    "PROGRESS_STEPS",
    "PURPOSE_ATTR",
    "REPLICA_ATTR",
    "REUSED_ATTR",
    "RUNG",
    "SCALE_ATTR",
    "SECONDS_ATTR",
    "SEED_ATTR",
    "SETTINGS_ATTR",
    "SOURCE_ATTR",
    "SPEED_ATTR",
    "STUDY_FILE_ATTR",
    "TOKEN_ATTR",
    "WORKER_ATTR",
]

FORMAT_VERSION = 1
"""Version of everything described here; raised when a release stores what earlier ones would misread."""

ATTR_PREFIX = "transfer_bo:"
"""How every key below begins, so that they cannot collide with a user's own attributes."""

# What the ladder stores with a trial.
RUNG = "rung"
"""Trial parameter: the index of the rung."""

SCALE_ATTR = "transfer_bo:scale"
"""Trial attribute: the axes of the scale that the trial ran at, `{axis: value}`."""

# What the sampler stores with a study.
SETTINGS_ATTR = "transfer_bo:settings"
"""Study attribute: what the sampler knows, as `records.StudySettings.to_json` writes it."""

FORMAT_ATTR = "transfer_bo:format"
"""Study attribute: the `FORMAT_VERSION` of the release that wrote the settings; absent before version 1."""

# What `runners.objective` stores when a trial ends.
OUTCOME_ATTR = "transfer_bo:outcome"
"""Trial attribute: how it ended, a value of `records.Outcome`."""

ERROR_ATTR = "transfer_bo:error"
"""Trial attribute: type and text of the exception that ended it."""

SECONDS_ATTR = "transfer_bo:seconds"
"""Trial attribute: wall-clock seconds in the objective, summed over all attempts."""

# What trials are for, and where they come from.
REUSED_ATTR = "transfer_bo:reused"
"""Trial attribute: share of the run that another trial had trained when it began, in [0, 1)."""

SEED_ATTR = "transfer_bo:seed"
"""Trial attribute: seed of initial weights and data order, if runs of one scale share it; an objective of
your own may set it. Absent where every run has its own."""

PURPOSE_ATTR = "transfer_bo:purpose"
"""Trial attribute: "search" (when absent), "verify", "control", "replicate" or "past"."""

SOURCE_ATTR = "transfer_bo:source"
"""Trial attribute: name of the source study that the run was made in; absent for the study's own runs."""

PARAMS_ATTR = "transfer_bo:params"
"""Trial attribute: HPs of a run of a source study, `{hp: value}`. They are no parameters of the trial,
because the ranges they were searched in are not those of this study."""

ADDED_SOURCE_PREFIX = "transfer_bo:past:"
"""Study attribute, followed by the name of a source study: number of its runs, once all are stored."""

# What a verification stores with its trials.
PREDICTION_ATTR = "transfer_bo:prediction"
"""Trial attribute of a verification: what was predicted before it ran, see `verification.jobs.plan`."""

CONTROL_ATTR = "transfer_bo:control"
"""Trial attribute of a control run: the name of the setting it stands for, e.g. "defaults"."""

REPLICA_ATTR = "transfer_bo:replica"
"""Trial attribute of a repeated run: 1, 2, ... Runs of one number share a seed; an objective of your own
takes its seed from it."""

# What workers store.
WORKER_ATTR = "transfer_bo:worker"
"""Trial attribute: `{"host", "pid", "id"}` of the process that runs it; an `id` is never reused."""

OPTIMIZER_ATTR = "transfer_bo:optimizer"
"""Trial attribute: `{"host", "pid", "started"}` of the process whose `study.optimize` runs it."""

BEAT_ATTR = "transfer_bo:beat"
"""Trial attribute: a count that grows while the trial's owner lives."""

OWNER_LOSSES_ATTR = "transfer_bo:deaths"
"""Trial attribute: how many owners died while running it."""

SPEED_ATTR = "transfer_bo:speed"
"""Trial attribute: `{"tokens_per_second", "utilisation"}` of its training; utilisation is the share of the
GPUs' peak FLOP/s, None where the peak is not known."""

ACCUMULATE_ATTR = "transfer_bo:accumulate"
"""Trial attribute: in how many parts a batch goes through the model, once memory has run out."""

TOKEN_ATTR = "transfer_bo:token"
"""Trial attribute: names the call that created the trial, so that a lost answer can be looked up."""

# What a study file stores with its study.
DEFINITION_ATTR = "transfer_bo:definition"
"""Study attribute: `StudyFile.definition()` and the text's fingerprint when the first trial was stored."""

HASH_ATTR = "transfer_bo:hash"
"""Study attribute: hash of the definition, with which workers on other machines compare theirs."""

STUDY_FILE_ATTR = "transfer_bo:study_file"
"""Study attribute: the study file itself, without its storage, for workers that have no copy."""

# What Optuna stores.
FIXED_PARAMS_ATTR = "fixed_params"
"""System attribute of a trial, written by Optuna's `enqueue_trial`: the values that were asked for."""

PROGRESS_STEPS = 1000
"""`trial.report(loss, step)` counts steps in thousandths of the run: rungs compare at equal progress."""
