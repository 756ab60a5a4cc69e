"""A function that builds a model, imported from a file or a module of the user's."""

from __future__ import annotations

import importlib
import runpy
import sys
from pathlib import Path

import torch
from torch import Tensor

from transfer_bo.errors import ParametrizationError
from transfer_bo.parametrization.builds import BuildModel, build_meta
from transfer_bo.scale import Scale

__all__ = ["check_logits", "load_build_model"]


def load_build_model(text: str, folder: Path = Path()) -> BuildModel:
    """Import a function that builds a model. This runs the code of its file.

    Args:
        text: "package.module:function" or "path/to/file.py:function".
        folder: What a relative path is relative to, and where modules are looked for first.

    Raises:
        ParametrizationError: if there is no such function, or the module cannot be imported.
    """
    place, colon, name = text.rpartition(":")
    if not colon or not place or not name:
        raise ParametrizationError(f"{text!r} names no function; write e.g. my_model.py:build_model.")

    file = (folder / place).absolute() if place.endswith(".py") else None
    if file is not None and not file.is_file():
        raise ParametrizationError(f"{place} is not a file in {folder.absolute()}; correct the path.")

    sys.path.insert(0, str(folder.absolute() if file is None else file.parent))  # for its neighbours
    try:
        names = vars(importlib.import_module(place)) if file is None else runpy.run_path(str(file))
    except Exception as error:  # whatever a user's file does when it is imported
        raise ParametrizationError(
            f"Importing {place} failed with {type(error).__name__}: {error}; correct it there."
        ) from None
    finally:
        del sys.path[0]

    if not callable(names.get(name)):
        raise ParametrizationError(f"{place} has no function {name!r}; name one that builds a model.")
    return names[name]  # type: ignore[no-any-return]


def check_logits(build_model: BuildModel, scale: Scale, context: int, vocab_size: int) -> None:
    """Check that a model turns tokens (B x T) into logits (B x T x V); no memory is allocated.

    Args:
        build_model: Gives the model at a scale.
        scale: Where it is built.
        context: T, tokens per sequence.
        vocab_size: The least V.

    Raises:
        ParametrizationError: if it cannot be built or called, or gives anything else.
    """
    model = build_meta(build_model, scale)
    tokens = torch.zeros(1, context, dtype=torch.long, device="meta")
    try:
        with torch.no_grad(), torch.device("meta"):
            logits = model(tokens)
    except Exception as error:  # whatever a user's model does
        raise ParametrizationError(
            f"The model at {scale} failed on 1 x {context} tokens with {type(error).__name__}: {error}; "
            "correct its forward pass."
        ) from error

    shape = tuple(logits.shape) if isinstance(logits, Tensor) else None
    if shape is None or shape[:-1] != (1, context) or shape[-1] < vocab_size:
        found = type(logits).__name__ if shape is None else f"the shape {shape}"
        raise ParametrizationError(
            f"The model at {scale} gives {found} for 1 x {context} tokens; make it return the logits of each "
            f"position, 1 x {context} x V with V at least the text's vocabulary of {vocab_size}."
        )
