"""How long one proposal takes, beside Optuna's GPSampler on the same trials in the same run.

    OMP_NUM_THREADS=1 python benchmarks/proposal_speed.py

A study of finished trials with random HPs is made up (four rungs, a bowl, noise), then each sampler is asked
for three more trials; CPU seconds of the fastest, since other programs may be running. GPSampler sees the
same HPs without a ladder, and proposes once where one proposal takes it minutes. With 100 HPs the search is
in its second stage, and `transfer_bo.suggest` is timed as well. The largest study is asked of this package
alone. `--only 100` leaves out the studies with other numbers of HPs.
"""

from __future__ import annotations

import argparse
import math
import resource
import time
import warnings

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution

import transfer_bo as tb
from transfer_bo.attributes import RUNG, SCALE_ATTR

RUNGS = [tb.Scale(width=w, depth=d, tokens=t) for w, d, t in [(64, 4, 1e6), (128, 4, 2e6), (256, 8, 8e6)]]
TARGET = tb.Scale(width=1024, depth=16, tokens=1e9)


def names(count: int) -> list[str]:
    """HPs of a per-module search."""
    common = ["lr", "weight_decay", "one_minus_beta2", "init_std"]
    return (common + [f"lr.group{i}" for i in range(count)])[:count]


def trials(count: int, hps: list[str], *, ladder: bool) -> list[optuna.trial.FrozenTrial]:
    """Finished trials with random HPs."""
    rng = np.random.default_rng(0)
    steep, centre = np.exp(rng.normal(-1, 1, len(hps))) * 0.02, rng.normal(0, 0.8, len(hps))
    made = []
    for number in range(count):
        rung, z = int(rng.integers(len(RUNGS))), rng.normal(0, 1.2, len(hps)).clip(-4, 4)
        bowl = float((steep * (z - centre) ** 2).sum())
        law = math.log(1.5 + 2 * 2 ** (-0.4 * math.log2(RUNGS[rung].width / 64)))
        loss = math.exp(law + 0.3 * math.log1p(bowl / 0.3) + rng.normal(0, 0.005))
        params: dict[str, float] = {name: float(2**at) for name, at in zip(hps, z, strict=True)}
        space: dict[str, BaseDistribution] = {n: FloatDistribution(2**-4, 2**4, log=True) for n in hps}
        attrs = {}
        if ladder:
            params[RUNG], space[RUNG] = rung, IntDistribution(0, len(RUNGS))
            attrs = {SCALE_ATTR: dict(RUNGS[rung])}
        made.append(
            optuna.trial.create_trial(params=params, distributions=space, value=loss, user_attrs=attrs)
        )
        made[-1].number = number
    return made


def seconds(study: optuna.Study, hps: list[str], ladder: tb.Ladder | None, proposals: int = 3) -> float:
    """CPU seconds of the fastest of some proposals."""
    took = []
    for _ in range(proposals):
        began = time.process_time()
        trial = study.ask()
        if ladder is not None:
            ladder.suggest(trial)
        for name in hps:
            trial.suggest_float(name, 2**-4, 2**4, log=True)
        took.append(time.process_time() - began)
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
    return min(took)


def study_of(
    sampler: optuna.samplers.BaseSampler, count: int, hps: list[str], ladder: tb.Ladder | None
) -> optuna.Study:
    """A study with finished trials."""
    study = optuna.create_study(sampler=sampler)
    study.add_trials(trials(count, hps, ladder=ladder is not None))
    return study


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", type=int, help="number of HPs")
    only = parser.parse_args().only
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    for count, hps in ((100, 7), (400, 13), (400, 100), (2000, 40)):
        if only not in (None, hps):
            continue
        ladder, is_staged = tb.Ladder(RUNGS), hps == 100
        staged = {"budget": 1e30, "global_share": 1e-30} if is_staged else {}
        sampler = tb.TransferSampler(ladder=ladder, target=TARGET, seed=0, **staged)
        study = study_of(sampler, count, names(hps), ladder)
        ours = seconds(study, names(hps), ladder)
        line = f"{count} trials, {hps} HPs: transfer_bo {ours:.2f} s"
        if count <= 400:
            peer_study = study_of(optuna.samplers.GPSampler(seed=0), count, names(hps), None)
            peer = seconds(peer_study, names(hps), None, 1 if is_staged else 3)
            line += f", GPSampler {peer:.2f} s, ratio {ours / peer:.2f}"
        if is_staged:
            began = time.process_time()
            tb.suggest(study)
            line += f"; suggest {time.process_time() - began:.2f} s"
        print(line, flush=True)
    print(f"largest memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GB")


if __name__ == "__main__":
    main()
