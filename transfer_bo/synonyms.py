"""Names under which tables and trackers keep the same thing: for guesses, priors and published laws.

`axis_kind` and `hp_kind` reduce a freely chosen name to its kind, by which priors and published laws are
looked up. The tuples are in order of preference: where columns are guessed, the first that varies is taken.
"""

from __future__ import annotations

__all__ = ["AXES", "HPS", "LOSSES", "STATUSES", "TOO_SHORT_TO_GUESS", "axis_kind", "hp_kind"]

AXES: dict[str, tuple[str, ...]] = {
    "n_params": (
        *("n_params", "num_params", "params", "parameters", "non_embedding_params", "model_size"),
        *("n_parameters", "size", "n"),
    ),
    "width": (
        *("width", "d_model", "hidden_size", "hidden", "n_embd", "dim"),
        *("hidden_dim", "channels"),
    ),
    "depth": (
        *("depth", "n_layers", "num_layers", "n_layer", "layers"),
        *("num_hidden_layers",),
    ),
    "tokens": (
        *("tokens", "n_tokens", "train_tokens", "num_tokens", "total_tokens", "steps", "num_steps", "epochs"),
        *("n_steps", "iterations", "duration", "samples", "d"),
    ),
    "data_fraction": ("data_fraction", "fraction"),
    "batch": ("batch", "batch_size", "bs", "batch_tokens", "global_batch_size"),
}
"""Axes of scale: kind -> names."""

HPS: dict[str, tuple[str, ...]] = {
    "lr": ("lr", "learning_rate", "eta"),
    "weight_decay": ("weight_decay", "wd", "decay"),
    "batch": ("batch", "bs"),
    "beta": ("beta", "beta1", "beta2", "momentum"),
    "eps": ("eps", "epsilon"),
    "init_std": ("init_std", "init"),
    "residual": ("residual",),
}
"""Hyperparameters: kind -> words. The first kind that has a word in a name decides: "peak_lr" is an lr."""

LOSSES = (
    *("loss", "val_loss", "valid_loss", "validation_loss", "eval_loss", "final_loss", "test_loss"),
    *("train_loss", "value"),
)
"""Names of the metric."""

STATUSES = ("status", "state", "outcome")
"""Names of the column that tells how a run ended."""

TOO_SHORT_TO_GUESS = frozenset({"n", "d", "size", "duration", "samples"})
"""Understood where the user calls them an axis; they mean other things too often to be guessed."""


def axis_kind(name: str) -> str:
    """The kind of an axis.

    Args:
        name: Any name of an axis, such as "d_model".

    Returns:
        A key of `AXES` ("width"); the name itself in lower case where it is not known.
    """
    lowered = name.lower().replace("-", "_")
    return next((kind for kind, names in AXES.items() if lowered in names), lowered)


def hp_kind(name: str) -> str:
    """The kind of a hyperparameter.

    Args:
        name: Any name, such as "peak_lr" or "batch_tokens".

    Returns:
        A key of `HPS` ("lr", "batch"), or "other" ("dropout").
    """
    lowered = name.lower()
    words = set(lowered.replace(".", "_").replace("-", "_").split("_"))

    for kind, known in HPS.items():
        if any(word in words or ("_" in word and word in lowered) for word in known):
            return kind
    return "other"
