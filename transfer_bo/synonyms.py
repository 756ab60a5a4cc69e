"""Names under which tables and trackers keep the same thing: for guesses, priors and published laws.

`axis_kind` and `hp_kind` reduce a freely chosen name to its kind, by which priors and published laws are
looked up. Case, separators and the prefixes of trackers make no difference: `nParams`, `n-params`,
`config/model.n_params` and `params_n_params` are all `n_params`. The tuples are in order of preference: where
columns are guessed, the first that varies is taken.
"""

from __future__ import annotations

import functools
import re

__all__ = [
    "AXES",
    "BETAS",
    "DURATIONS",
    "EXIT_CODES",
    "HELD_OUT_WORDS",
    "HPS",
    "LOSSES",
    "LOSS_WORDS",
    "RUN_NAMES",
    "STATUSES",
    "STEPS",
    "TOO_SHORT_TO_GUESS",
    "axis_kind",
    "hp_kind",
    "plain_name",
    "short_names",
    "unit_of",
    "without_prefix",
]

AXES: dict[str, tuple[str, ...]] = {
    "n_params": (
        *("n_params", "num_params", "params", "parameters", "non_embedding_params", "model_size"),
        *("n_parameters", "num_parameters", "nparams", "param_count", "parameter_count", "params_count"),
        *("total_params", "model_params", "num_model_params", "trainable_params", "num_trainable_params"),
        *("n_non_embedding_params", "num_non_embedding_params", "params_non_embedding", "non_emb_params"),
        *("size", "n"),
    ),
    "width": (
        *("width", "d_model", "hidden_size", "hidden", "n_embd", "dim", "hidden_dim", "channels"),
        *("embed_dim", "embedding_dim", "emb_dim", "n_embed", "embed_size", "embedding_size", "model_dim"),
        *("model_width", "dmodel", "d_hidden", "n_hidden", "hidden_units", "hidden_width", "num_channels"),
        "emb_size",
    ),
    "depth": (
        *("depth", "n_layers", "num_layers", "n_layer", "layers", "num_hidden_layers", "nlayers"),
        *("num_layer", "n_hidden_layers", "n_blocks", "num_blocks", "blocks", "model_depth"),
    ),
    "tokens": (
        *("tokens", "n_tokens", "train_tokens", "num_tokens", "total_tokens", "steps", "num_steps", "epochs"),
        *("n_steps", "iterations", "training_tokens", "num_train_tokens", "n_train_tokens", "tokens_seen"),
        *("token_count", "token_budget", "max_tokens", "train_steps", "training_steps", "num_train_steps"),
        *("total_steps", "max_steps", "num_training_steps", "n_iters", "num_iters", "max_iters"),
        *("train_iters", "iters", "n_epochs", "num_epochs", "num_train_epochs", "max_epochs", "duration"),
        *("samples", "d"),
    ),
    "data_fraction": ("data_fraction", "fraction"),
    "batch": (
        *("batch", "batch_size", "bs", "batch_tokens", "global_batch_size", "gbs", "train_batch_size"),
        *("total_batch_size", "total_train_batch_size", "per_device_train_batch_size", "tokens_per_batch"),
        *("batch_size_tokens", "minibatch_size", "mini_batch_size", "tokens_per_step", "tokens_per_update"),
    ),
}
"""Axes of scale: kind -> names."""

HPS: dict[str, tuple[str, ...]] = {
    "lr": (
        *(
            "lr",
            "learning_rate",
            "learn_rate",
            "eta",
            "step_size",
            "stepsize",
            "learningrate",
            "lrate",
            "lr0",
        ),
        "blr",
    ),
    "weight_decay": ("weight_decay", "wd", "weightdecay", "l2_reg", "l2_penalty", "l2_regularization"),
    "batch": (
        *("batch", "bs", "gbs", "bsz", "batchsize", "minibatch", "tokens_per_batch", "tokens_per_step"),
        "tokens_per_update",
    ),
    "beta": ("beta", "beta1", "beta2", "beta_1", "beta_2", "b1", "b2", "betas", "momentum"),
    "eps": ("eps", "epsilon"),
    "init_std": ("init_std", "init", "initializer_range"),
    "residual": ("residual",),
}
"""Hyperparameters: kind -> words. The first kind that has a word in a name decides: "peak_lr" is an lr."""

WHOLE_HPS: dict[str, str] = {"decay": "weight_decay", "l2": "weight_decay"}
"""Names of hyperparameters that mean this only as the whole name: name -> kind."""

OTHER_WORDS = frozenset(
    [
        *("schedule", "scheduler", "scheduling", "warmup", "cooldown", "annealing", "decay", "steps", "step"),
        *("iters", "epochs", "norm", "seed", "type", "name", "mode", "ratio", "count", "num", "start", "end"),
        *("min", "final", "gamma", "restart", "restarts", "eval", "val", "valid", "validation", "test"),
        *("bn", "layernorm", "ema", "kl", "smoothing", "greedy"),
    ]
)
"""Words that make a name that of something else: "lr_warmup_steps" is no learning rate."""

_COUNT_WORDS = frozenset(
    [
        *("n", "nb", "no", "num", "number", "of", "the", "total", "count", "cnt", "all", "max", "model"),
        *("network", "net", "train", "training", "trainable", "transformer"),
        *("hp", "hparam", "hparams", "config", "cfg", "arg", "args"),
    ]
)
"""Words around the one that tells what is counted: "total number of params"."""

UNITS: dict[str, float] = {
    **{"k": 1e3, "thousand": 1e3, "thousands": 1e3, "m": 1e6, "mio": 1e6, "million": 1e6, "millions": 1e6},
    **{"b": 1e9, "bn": 1e9, "g": 1e9, "billion": 1e9, "billions": 1e9, "t": 1e12, "trillion": 1e12},
}
"""Last words of a name that tell in what unit it counts: "Params (M)", "tokens_b"."""

COUNTED = ("n_params", "tokens", "batch")
"""Kinds of axes that are counted in such units."""

AXIS_WORDS: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "batch": (
        frozenset({"batch", "batchsize", "bs", "bsz", "gbs", "minibatch"}),
        frozenset(
            {
                "size",
                "sz",
                "global",
                "effective",
                "per",
                "device",
                "gpu",
                "mini",
                "tokens",
                "sequences",
                "seqs",
            }
        ),
    ),
    "n_params": (
        frozenset({"params", "param", "parameters", "parameter", "nparams"}),
        frozenset(
            [
                *("non", "nonembed", "nonembedding", "nonemb", "embedding", "embeddings", "embed", "emb"),
                *("active", "activated", "without", "excl", "excluding"),
            ]
        ),
    ),
    "depth": (
        frozenset({"depth", "layers", "nlayers", "layer", "blocks", "resblocks"}),
        frozenset({"hidden", "encoder", "decoder", "residual", "res"}),
    ),
    "tokens": (
        frozenset(
            [
                *("tokens", "token", "steps", "iterations", "iters", "updates", "update", "epochs", "epoch"),
                *("samples", "examples", "sequences"),
            ]
        ),
        frozenset(
            [
                *(
                    "seen",
                    "consumed",
                    "processed",
                    "trained",
                    "budget",
                    "data",
                    "dataset",
                    "gradient",
                    "grad",
                ),
                *("optimizer", "unique"),
            ]
        ),
    ),
    "width": (
        frozenset({"width", "dim", "dims", "hidden", "embd", "embed", "channels", "units", "dmodel"}),
        frozenset(
            {"d", "size", "embedding", "emb", "layer", "base", "encoder", "decoder", "mult", "multiplier"}
        ),
    ),
}
"""Kind of axis -> the words of which a name has at least one, and those that it may have besides, with
`_COUNT_WORDS`; in the order in which kinds are tried. "consumed train tokens" is tokens, "warmup_steps" is
not."""

NO_AXES = frozenset(
    {"layer", "hidden", "token", "epoch", "update", "gradient_update", "embed", "embed_layer"}
)
"""Names that are too little for that."""

BETAS: dict[str, tuple[str, ...]] = {
    "beta1": ("beta1", "beta_1", "b1", "adam_beta1", "adam_beta_1", "betas_0"),
    "beta2": ("beta2", "beta_2", "b2", "adam_beta2", "adam_beta_2", "betas_1"),
}
"""Which beta of Adam's a name is."""

LOSSES = (
    *("loss", "val_loss", "valid_loss", "validation_loss", "eval_loss", "final_loss", "test_loss"),
    *("final_val_loss", "final_eval_loss", "final_validation_loss", "dev_loss", "heldout_loss"),
    *("held_out_loss", "lm_loss", "val_lm_loss", "cross_entropy", "val_cross_entropy", "ce_loss", "nll"),
    *("val_nll", "bits_per_byte", "val_bpb", "bpb", "train_loss", "training_loss", "final_train_loss"),
    *("objective", "value"),
)
"""Names of the metric."""

LOSS_WORDS = frozenset(
    [
        *("loss", "nll", "crossentropy", "logloss", "perplexity", "ppl", "bpb", "bpc"),
    ]
)
"""Words that make an unusual name that of a metric: "c4_en-validation-loss"."""

HELD_OUT_WORDS = frozenset({"val", "valid", "validation", "eval", "evaluation", "test", "dev", "heldout"})
"""Words of a metric on other data than it was trained on."""

STATUSES = (
    *("outcome", "status", "state", "run_state", "run_status", "trial_state", "trial_status", "job_state"),
    *("job_status", "st_status", "final_status", "st", "phase", "conclusion"),
)
"""Names of the column that tells how a run ended; a tracker's status says less than an outcome beside it."""

EXIT_CODES = (*("exit_code", "exitcode", "exit_status", "exitstatus", "return_code", "returncode"),)
"""Names of a column with the exit code of a run's process."""

STEPS = (
    *("step", "global_step", "train_step", "training_iteration", "iteration", "iter", "epoch"),
    *("trainer_global_step", "update", "it", "checkpoint", "ckpt", "current_step", "step_num", "step_idx"),
    *("n_step", "tokens_seen", "n_tokens_seen", "samples_seen", "progress"),
)
"""Names of the counter in a table that has a row for each step of a run."""

DURATIONS = (
    "steps",
    "num_steps",
    "n_steps",
    "epochs",
    "iterations",
    "iters",
    "tokens",
    "n_tokens",
    "num_tokens",
)
"""Names of such a counter or of the length of a run: only where a column names the run of each row."""

SCHEDULES = (
    *("schedule", "lr_schedule", "learning_rate_schedule", "lr_schedule_type", "schedule_type", "sched"),
    *("scheduler", "lr_scheduler", "lr_scheduler_type", "scheduler_type", "scheduler_name", "lr_sched"),
    *("lr_decay_style", "decay_style", "decay_type", "decay_shape", "lr_wsd_decay_style", "lr_decay_type"),
    *("cooldown_fraction", "cooldown_frac", "cooldown_type", "cooldown", "decay_fraction", "decay_frac"),
    *("wsd_decay_fraction", "annealing", "anneal_strategy"),
)
"""Names of columns that tell the learning-rate schedule of a run."""

RUN_NAMES = (
    *("run_id", "run", "run_name", "run_uuid", "trial_id", "trial", "experiment_id", "job_id", "id", "name"),
    *("uuid", "exp_name", "display_name"),
)
"""Names of the column that tells which run a row belongs to."""

TOO_SHORT_TO_GUESS = frozenset({"n", "d", "size", "duration", "samples"})
"""Understood where the user calls them an axis; they mean other things too often to be guessed."""

JOINED_PREFIXES = ("config", "hparams", "hparam", "params", "param", "user_attrs", "system_attrs")
"""What trackers write in front of a name, with an underscore between: `params_lr`, `user_attrs_width`."""

PREFIXES = (
    *JOINED_PREFIXES,
    *("hyperparameters", "hyper_parameters", "summary", "metrics", "metric", "args", "cfg", "parameters"),
    *("tags", "data"),
)
"""The same with a point, a slash or a colon between: `config.lr`, `metrics/loss`."""

KNOWN = frozenset(name for names in (*AXES.values(), LOSSES) for name in names)
"""Names that are whole as they are, though some begin like a prefix: `params_count`."""

NAMES = KNOWN | {name for names in HPS.values() for name in names}
"""Names that a value may stand under."""

_PATH = re.compile(r"[./\\:|\[\]]+")
_GAPS = re.compile(r"[\W_]+")
_HUMPS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


@functools.cache
def plain_name(name: str) -> str:
    """Write a name in lower case with underscores: "Train/numTokens" becomes "train_num_tokens"."""
    words = _GAPS.split(_HUMPS.sub("_", _PATH.sub("_", name)))
    return "_".join(word.lower() for word in words if word)


@functools.cache
def short_names(name: str) -> tuple[str, ...]:
    """The plain forms of a name, without more and more of what stands in front of it.

    Args:
        name: Any name of a column.

    Returns:
        The whole name first: "config/model.hidden_size" gives "config_model_hidden_size",
        "model_hidden_size" and "hidden_size".
    """
    parts = [plain for part in _PATH.split(name) if (plain := plain_name(part))]
    if parts[-1:] == ["value"] and parts[-2:-1] and parts[-2] in NAMES:  # {"lr": {"value": 1e-3}} of W&B
        parts = parts[:-1]
    names = ["_".join(parts[i:]) for i in range(len(parts))]
    for prefix in JOINED_PREFIXES:
        if names and names[-1].startswith(f"{prefix}_"):
            names.append(names[-1].removeprefix(f"{prefix}_"))
    return tuple(dict.fromkeys(names))


@functools.cache
def without_prefix(name: str) -> str:
    """A name without what trackers write in front of it: "config/optimizer.lr" becomes "optimizer.lr".

    Args:
        name: Any name of a column.
    """
    starts = [f"{prefix}{separator}" for prefix in PREFIXES for separator in "./:"]
    for start in [*starts, *(f"{prefix}_" for prefix in JOINED_PREFIXES)]:
        if name.lower().startswith(start) and len(name) > len(start) and name not in KNOWN:
            return without_prefix(name[len(start) :])
    return name


@functools.cache
def axis_kind(name: str) -> str:
    """The kind of an axis.

    Args:
        name: Any name of an axis, such as "d_model" or "config.d_model".

    Returns:
        A key of `AXES` ("width"); the plain name where it is not known.
    """
    for short in short_names(name):
        for kind, names in AXES.items():
            if short in names:
                return kind
    for short in short_names(name):
        if (found := _axis_kind_of_words(short)) is not None:
            return found

    if unit_of(name) != 1.0:
        counted = axis_kind(plain_name(name).rpartition("_")[0])
        return counted if counted in COUNTED else plain_name(name)
    return plain_name(name)


@functools.cache
def unit_of(name: str) -> float:
    """The unit in which an axis counts, as far as its name tells: 1e6 for "Params (M)".

    Args:
        name: Any name of an axis.
    """
    plain = plain_name(name)
    head, _, last = plain.rpartition("_")
    return UNITS.get(last, 1.0) if head and head not in TOO_SHORT_TO_GUESS else 1.0


def _axis_kind_of_words(plain: str) -> str | None:
    """The kind of axis of a plain name by the words in it, or None."""
    words = set(plain.split("_"))
    for kind, (heads, others) in AXIS_WORDS.items():
        if words & heads and not words - heads - others - _COUNT_WORDS and plain not in NO_AXES:
            return kind
    return None


@functools.cache
def hp_kind(name: str) -> str:
    """The kind of a hyperparameter.

    Args:
        name: Any name, such as "peak_lr", "optimizer.lr" or "batch_tokens".

    Returns:
        A key of `HPS` ("lr", "batch"), or "other" ("dropout").
    """
    for short in short_names(name):
        if short in WHOLE_HPS:
            return WHOLE_HPS[short]

    head, dot, _ = name.partition(".")  # "lr.q_norm": the multiplier of a learning rate
    return (_kind_of_words(plain_name(head)) if dot else None) or _kind_of_words(plain_name(name)) or "other"


def _kind_of_words(plain: str) -> str | None:
    """The kind of a plain name by the words in it, or None."""
    padded = f"_{plain}_"
    found = [(kind, word) for kind, words in HPS.items() for word in words if f"_{word}_" in padded]
    if not found:
        return None

    kind, word = found[0]
    others = set(padded.replace(f"_{word}_", "_").split("_"))
    return None if others & OTHER_WORDS else kind
