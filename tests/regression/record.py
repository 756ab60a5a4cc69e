"""Records what the package answers to fixed questions: searches, suggestions, tables, commands.

A change that should not alter behaviour is checked against the record:

    python tests/regression/record.py --check tests/regression/answers.json    # each difference, exit code 1
    python tests/regression/record.py --out tests/regression/answers.json      # after a change that should

Everything has a fixed seed and runs in one thread, so that on the same machine, with the same versions of
the libraries, all numbers repeat to the last bit. Run times, versions and paths are left out. Only public
names are used, so that the script also runs with earlier versions of the package. Sentences may be worded
anew as long as their numbers stay, and printed tables laid out anew; `--words` compares them too.
"""

from __future__ import annotations

import os

if __name__ == "__main__":  # before torch is imported
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", HF_HUB_OFFLINE="1")

import argparse
import contextlib
import hashlib
import importlib.metadata
import json
import math
import platform
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import torch
from typer.testing import CliRunner

import transfer_bo as tb
from transfer_bo.projection import fit_study

Answer = Any
"""Plain JSON values."""

DATA = Path(os.environ.get("TRANSFER_BO_DATA", Path(__file__).parents[3] / "shared" / "data"))
STORED = ("scale", "outcome", "purpose")
"""Trial attributes, spelled out here so that a key that is renamed counts as a difference."""

LIBRARIES = ("torch", "gpytorch", "botorch", "optuna", "scipy", "numpy", "pandas")
SKIPPED = "skipped: "
"""How the answer of a section starts that could not be recorded here; the reason follows."""
PRINTED = "printed"
"""Key of what is laid out for people, and compared only as words are."""


class Unavailable(Exception):
    """A section needs data or a library that is not here."""


# The synthetic objective: a law in scale times a bowl whose optimum drifts; noise is a function of the HPs.

WIDTHS = [tb.Scale(width=32, tokens=1e5), tb.Scale(width=64, tokens=1e5), tb.Scale(width=64, tokens=4e5)]
TARGET = tb.Scale(width=256, tokens=1e6)
SCHEDULES = {"cosine": 0.0, "linear": 0.01, "constant": 0.05}


def noise_of(*values: float) -> float:
    """A number between -1 and 1 that looks random."""
    return math.sin(1e4 * sum((i + 1) * math.log2(value) for i, value in enumerate(values)))


def loss_at(scale: tb.Scale, lr: float, decay: float, schedule: str = "cosine") -> float:
    """The best lr falls by .4 octaves per doubling of width; training breaks 3 octaves above it."""
    best = -6 - 0.4 * math.log2(scale.width / 32)
    z = math.log2(lr) - best
    if z > 3:
        raise tb.Diverged("the loss is nan")

    law = 1 + (scale.width / 32) ** -0.5 + 0.5 * (scale.tokens / 1e5) ** -0.4
    bowl = 0.02 * z**2 + 0.003 * math.log2(decay / 0.1) ** 2 + SCHEDULES[schedule]
    return law * math.exp(bowl + 0.002 * noise_of(lr, decay))


def trials_of(study: optuna.Study) -> list[Answer]:
    """Every trial, without its times."""
    return [
        {
            "number": trial.number,
            "state": trial.state.name,
            "params": dict(sorted(trial.params.items())),
            "value": trial.value,
            **{key: trial.user_attrs.get(f"transfer_bo:{key}") for key in STORED},
            "reports": {str(step): value for step, value in sorted(trial.intermediate_values.items())},
        }
        for trial in study.get_trials(deepcopy=False)
    ]


def plain_suggestion(plain: dict[str, Any]) -> Answer:
    """The JSON of a suggestion without versions."""
    kept = {"seed", "runs", "past"}
    provenance = {key: value for key, value in plain["provenance"].items() if key in kept}
    return plain | {"provenance": provenance}


# Searches


def search_with_ladder() -> Answer:
    """Raw coordinates, a categorical HP, diverged trials and a pruned one; the loss is minimized."""
    ladder = tb.Ladder(WIDTHS)
    sampler = tb.TransferSampler(ladder=ladder, target=TARGET, coordinates="raw", seed=1)
    study = optuna.create_study(sampler=sampler, study_name="ladder")

    @tb.objective
    def objective(trial: optuna.Trial) -> float:
        scale = ladder.suggest(trial)
        lr = trial.suggest_float("lr", 1e-4, 0.5, log=True)
        decay = trial.suggest_float("weight_decay", 1e-3, 1.0, log=True)
        schedule = trial.suggest_categorical("schedule", list(SCHEDULES))
        loss = loss_at(scale, lr, decay, schedule)

        trial.report(loss + 0.5, 500)
        if trial.number == 7:
            raise optuna.TrialPruned
        return loss

    study.optimize(objective, n_trials=14)
    larger = tb.Scale(width=512, tokens=4e6)
    return {
        "trials": trials_of(study),
        "suggestion": plain_suggestion(tb.suggest(study).to_json()),
        "larger target": plain_suggestion(fit_study(study, larger).suggest().to_json()),
    }


def search_for_the_largest() -> Answer:
    """Base coordinates, a metric to maximize, a drift prior and defaults, linear and whole-number HPs."""
    ladder = tb.Ladder(WIDTHS[:2])
    sampler = tb.TransferSampler(
        ladder=ladder,
        target=TARGET,
        drift_prior={"lr": {"width": (-0.3, 0.2)}},
        defaults={"lr": 0.01, "warmup": 40},
        budget=12 * 6 * 32**2 * 1e5,
        seed=2,
    )
    study = optuna.create_study(sampler=sampler, study_name="largest", direction="maximize")

    @tb.objective
    def objective(trial: optuna.Trial) -> float:
        scale = ladder.suggest(trial)
        lr = trial.suggest_float("lr", 1e-4, 0.1, log=True)
        momentum = trial.suggest_float("momentum", 0.5, 0.99)
        warmup = trial.suggest_int("warmup", 10, 100, step=10)
        return -loss_at(scale, lr, 0.1) - (momentum - 0.8) ** 2 - 1e-5 * (warmup - 50) ** 2

    study.optimize(objective, n_trials=50)  # until the budget is spent
    return {"trials": trials_of(study), "suggestion": plain_suggestion(tb.suggest(study).to_json())}


def search_without_ladder() -> Answer:
    """The sampler hands over to Optuna's; there is nothing to project."""
    study = optuna.create_study(
        sampler=tb.TransferSampler(seed=3, n_startup_trials=4), study_name="no ladder"
    )

    @tb.objective
    def objective(trial: optuna.Trial) -> float:
        lr = trial.suggest_float("lr", 1e-4, 0.1, log=True)
        return loss_at(WIDTHS[0], lr, trial.suggest_float("weight_decay", 1e-3, 1.0, log=True))

    study.optimize(objective, n_trials=8)
    try:
        tb.suggest(study)
    except tb.TransferError:
        refused = True
    else:
        refused = False
    return {"trials": trials_of(study), "suggest is refused": refused}


def search_multipliers() -> Answer:
    """Two stages: HPs of all tensors, then multipliers of groups in a trust region."""
    best = {"lr.attn": 1.0, "lr.mlp": -1.0, "lr.embedding": 1.5, "lr.norm": 0.0, "lr.@0": 0.5, "lr.@1": -0.5}
    space = tb.Space(
        [tb.HP.of("lr", 1e-3, 0.1, 0.01), tb.HP.of("weight_decay"), *(tb.HP.of(name) for name in best)]
    )
    ladder = tb.Ladder([WIDTHS[0], WIDTHS[2]])
    cheapest = 6 * 32**2 * 1e5
    sampler = tb.TransferSampler(
        ladder=ladder,
        target=TARGET,
        budget=60 * cheapest,
        global_share=0.2,
        defaults=space.defaults,
        n_startup_trials=4,
        seed=4,
    )
    study = optuna.create_study(sampler=sampler, study_name="multipliers")

    @tb.objective
    def objective(trial: optuna.Trial) -> float:
        scale = ladder.suggest(trial)
        hps = space.suggest(trial)
        groups = sum(0.004 * (math.log2(hps[name]) - at) ** 2 for name, at in best.items())
        return loss_at(scale, hps["lr"], hps["weight_decay"]) + groups

    study.optimize(objective, n_trials=18)
    return {"trials": trials_of(study), "suggestion": plain_suggestion(tb.suggest(study).to_json())}


def search_after_a_source_study() -> Answer:
    """Runs of an earlier table enter as prior data."""
    ladder = tb.Ladder(WIDTHS[:2])
    study = optuna.create_study(
        sampler=tb.TransferSampler(ladder=ladder, target=TARGET, seed=5), study_name="past"
    )
    tb.add_past_runs(study, table_by_width().drop(columns="schedule"), name="old")

    @tb.objective
    def objective(trial: optuna.Trial) -> float:
        scale = ladder.suggest(trial)
        lr = trial.suggest_float("lr", 1e-4, 0.1, log=True)
        return loss_at(scale, lr, trial.suggest_float("weight_decay", 1e-3, 1.0, log=True))

    study.optimize(objective, n_trials=5)
    return {"trials": trials_of(study), "suggestion": plain_suggestion(tb.suggest(study).to_json())}


# Tables of runs


def table_by_width() -> pd.DataFrame:
    """Sixteen runs at two widths and two durations, with a schedule and a diverged row."""
    rows = []
    for i in range(16):
        scale = tb.Scale(width=32 * 2 ** (i % 2), tokens=1e5 * 4 ** (i // 2 % 2))
        lr, decay = 2.0 ** (-9 + (i * 7 % 16) / 3), 0.01 * 2.0 ** (i * 5 % 16 / 3)
        schedule = list(SCHEDULES)[i % 3 % 2]
        loss = math.nan if i == 11 else loss_at(scale, lr, decay, schedule)
        rows.append({**scale, "lr": lr, "weight_decay": decay, "schedule": schedule, "loss": loss})
    return pd.DataFrame(rows)


def table_of_sizes() -> pd.DataFrame:
    """Twelve runs at each of four widths, for what is measured per width."""
    rows = []
    for i in range(48):
        scale = tb.Scale(width=16 * 2 ** (i % 4), tokens=1e5)
        lr, decay = 2.0 ** (-8 + i // 4 / 3), 0.01 * 2.0 ** (i // 4 * 5 % 12 / 2)
        rows.append(
            {"width": scale.width, "lr": lr, "weight_decay": decay, "loss": loss_at(scale, lr, decay)}
        )
    return pd.DataFrame(rows)


def read_data(name: str) -> pd.DataFrame:
    """A table of runs made by others."""
    path = DATA / name
    if not path.is_file():
        raise Unavailable(f"{name} is not here; set TRANSFER_BO_DATA to the folder that holds it")
    return pd.read_csv(path)


def suggest_by_width() -> Answer:
    """A categorical HP, a diverged row, the test on the largest scales."""
    suggestion = tb.suggest_from_runs(
        table_by_width(),
        axes=["width", "tokens"],
        hps={"lr": "log", "weight_decay": "log", "schedule": "categorical"},
        target={"width": 128, "tokens": 1.6e6},
    )
    return plain_suggestion(suggestion.to_json())


def suggest_steplaw() -> Answer:
    """24 runs of language models by parameters and tokens."""
    table = read_data("steplaw_dense_small.csv")
    table = table[(table["n_params"] <= 2.7e8) & (table["tokens"] <= 2.5e10)]
    suggestion = tb.suggest_from_runs(
        table.sample(24, random_state=0),
        axes=["n_params", "tokens"],
        hps={"lr": "log", "batch_tokens": "log"},
        loss="loss",
        target={"n_params": 1.07e9, "tokens": 2e10},
        held_out=False,
    )
    return plain_suggestion(suggestion.to_json())


def suggest_fcnet() -> Answer:
    """30 runs of multilayer perceptrons by width, two linear HPs, a metric over decades."""
    table = read_data("fcnet_square_protein_structure.csv.gz")
    table = table[(table["width"] <= 64) & (table["activation_fn_1"] == "relu")]
    suggestion = tb.suggest_from_runs(
        table.sample(30, random_state=0),
        axes=["width"],
        hps={"init_lr": "log", "batch_size": "log", "dropout_1": "linear", "lr_schedule": "categorical"},
        loss="val_mse_s0",
        target={"width": 512},
        held_out=False,
        seed=1,
    )
    return plain_suggestion(suggestion.to_json())


# The command line

TINY = """
name = "tiny"

[data]
source = "text"
context = 16

[[ladder.rungs]]
width = 16
depth = 1
batch = 2
tokens = 512

[[ladder.rungs]]
width = 32
depth = 1
batch = 2
tokens = 512

[ladder.target]
width = 32
depth = 2
batch = 2
tokens = 1024

[parametrization]
rule = "complete_d_p"

[space]
lr = { low = 0.001, high = 0.1, default = 0.01 }
"lr.embedding" = {}

[budget]
target_runs = 100
trials = 6
"""


def invoke(*arguments: str, code: int = 0) -> str:
    """Standard output of a command in this process."""
    from transfer_bo.cli import app

    result = CliRunner().invoke(app, list(arguments))
    if result.exit_code != code:
        raise RuntimeError(
            f"transfer-bo {' '.join(arguments)} ended with {result.exit_code}: {result.output}"
        )
    return result.stdout


def commands_on_a_study() -> Answer:
    """`run`, `verify`, then everything that reads a study: a search that trains small transformers."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "text").mkdir()
        for name in "ab":
            text = f"{name}: the cat sat on the mat and looked at the moon. " * 40
            (Path(folder) / "text" / f"{name}.txt").write_text(text)
        path = Path(folder) / "tiny.toml"
        path.write_text(TINY)
        study = str(path)

        invoke("run", study)
        suggestion = json.loads(invoke("suggest", study, "--json"))
        invoke("verify", study)

        url = f"sqlite:///{folder}/runs/tiny/study.db"
        trials = trials_of(optuna.load_study(study_name=None, storage=url))
        return {
            "trials": trials,
            "suggest": plain_suggestion(suggestion),
            "status": printed(invoke("status", study), columns=-1),  # the last is a time
        }


def commands_on_a_table() -> Answer:
    """`suggest --runs` and `diagnose --runs`."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "runs.csv")
        table_by_width().to_csv(path, index=False)
        sizes = str(Path(folder) / "sizes.csv")
        table_of_sizes().to_csv(sizes, index=False)
        columns = ["--axis", "width", "--hp", "lr:log", "--hp", "weight_decay:log", "--loss", "loss"]
        target = ["--target", "width=128", "--target", "tokens=1.6e6", "--axis", "tokens"]
        drift = ["--drift", "lr:width=-0.4,0.1", "--no-held-out", "--seed", "3", "--json"]
        return {
            "suggest": plain_suggestion(
                json.loads(invoke("suggest", "--runs", path, *columns, *target, *drift))
            ),
            "diagnose": json.loads(invoke("diagnose", "--runs", sizes, *columns, "--json")),
        }


def command_plan() -> Answer:
    """`plan` in runs and in FLOPs, with the theory."""
    runs = ["--budget", "4", "--unit", "runs", "--target", "n_params=1e9", "--target", "tokens=2e10"]
    flops = ["--budget", "1e20", "--target", "width=2048", "--target", "tokens=1e10", "--rates", "0.5,0.4"]
    hps = ["--hp", "lr:log:1e-4:1e-2", "--hp", "beta2:one_minus:0.9:0.999", "--json"]
    return {
        "runs": json.loads(invoke("plan", *runs, *hps)),
        "flops": json.loads(invoke("plan", *flops, *hps, "--coordinates", "base")),
    }


def command_coord_check() -> Answer:
    """`coord-check`, whose table is for people only."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "text").mkdir()
        (Path(folder) / "text" / "a.txt").write_text("the cat sat on the mat and looked at the moon. " * 800)
        path = Path(folder) / "tiny.toml"
        path.write_text(TINY)
        return printed(invoke("coord-check", str(path)))


NOT_RECORDED = re.compile("^Passed|^Failed|tokens/s$")
"""Lines with verdicts in words, and with speeds."""


def printed(text: str, columns: int | None = None) -> Answer:
    """The cells of a printed table, line by line, without frames and paths, up to a number of columns."""
    lines = [re.split(r"\s{2,}", re.sub(r"[^\x00-\x7f]", "  ", line).strip()) for line in text.splitlines()]
    kept = [line for line in lines if any(line) and not NOT_RECORDED.search(line[0])]
    return {PRINTED: [line[:columns] or line for line in kept]}


# Parametrizations

SMALL = tb.Scale(width=32, depth=2, batch=4, tokens=1e5)
LARGE = {
    "wider and longer": tb.Scale(width=128, depth=2, batch=8, tokens=8e5),
    "deeper": tb.Scale(width=64, depth=8, batch=4, tokens=1e5),
}
RULES = ("complete_d_p", "muon")


def table_of(build: Callable[[tb.Scale], Any], target: tb.Scale, rule: str, hps: dict[str, float]) -> Answer:
    """A row per tensor."""
    p = tb.parametrize(build, base=SMALL, target=target, rule=rule)
    table = p.table(hps)
    return [
        {str(name): plain(value) for name, value in row.items()}
        for row in table.reset_index().to_dict("records")
    ]


def plain(value: Any) -> Any:
    """A table's cell as JSON knows it."""
    if isinstance(value, (str, int, float)) or value is None:
        return value
    return [plain(part) for part in value] if isinstance(value, (list, tuple)) else str(value)


def parametrization_of_the_reference() -> Answer:
    """The reference transformer: tables, and the weights that `initialize` draws."""
    from transfer_bo.training import build_transformer

    def build(scale: tb.Scale) -> torch.nn.Module:
        return build_transformer(scale, vocab_size=17)

    hps = {
        "lr": 2.0**-7,
        "lr.embedding": 4.0,
        "lr.@0": 2.0,
        "lr.@1": 0.5,
        "weight_decay": 0.1,
        "residual.attn": 2.0,
    }
    answers: dict[str, Answer] = {
        f"{name}, {rule}": table_of(build, target, rule, hps)
        for name, target in LARGE.items()
        for rule in RULES
    }

    target = LARGE["deeper"]
    p = tb.parametrize(build, base=SMALL, target=target, rule="complete_d_p")
    model = build(target)
    p.initialize(model, hps, seed=1)
    with torch.no_grad():
        answers["weights"] = {
            name: [float(weight.double().sum()), float(weight.double().square().sum())]
            for name, weight in model.named_parameters()
        }
        answers["logits"] = model(torch.arange(17)[None])[0, -1].tolist()
    return answers


def parametrization_of_hugging_face() -> Answer:
    """GPT-2 (tied, fused) and Mixtral (experts)."""
    try:
        import transformers
    except ImportError:
        raise Unavailable("transformers is not installed (extra `hf`)") from None

    def gpt2(scale: tb.Scale) -> torch.nn.Module:
        sizes = {"n_embd": int(scale.width), "n_layer": int(scale.depth), "n_head": int(scale.width) // 8}
        config = transformers.GPT2Config(
            **sizes, n_positions=16, vocab_size=19, bos_token_id=0, eos_token_id=1
        )
        return transformers.GPT2LMHeadModel(config)

    def mixtral(scale: tb.Scale) -> torch.nn.Module:
        width = int(scale.width)
        config = transformers.MixtralConfig(
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=int(scale.depth),
            num_attention_heads=width // 8,
            num_key_value_heads=width // 16,
            head_dim=8,
            num_local_experts=4,
            vocab_size=19,
            bos_token_id=0,
            eos_token_id=1,
        )
        return transformers.MixtralForCausalLM(config)

    hps = {"lr": 2.0**-7, "weight_decay": 0.1}
    return {
        build.__name__: table_of(build, LARGE["wider and longer"], "complete_d_p", hps)
        for build in (gpt2, mixtral)
    }


SECTIONS: dict[str, Callable[[], Answer]] = {
    "search with a ladder": search_with_ladder,
    "search for the largest": search_for_the_largest,
    "search without a ladder": search_without_ladder,
    "search of multipliers": search_multipliers,
    "search after a source study": search_after_a_source_study,
    "runs by width": suggest_by_width,
    "runs of Step Law": suggest_steplaw,
    "runs of FCNet": suggest_fcnet,
    "commands on a study": commands_on_a_study,
    "commands on a table": commands_on_a_table,
    "plan": command_plan,
    "coord-check": command_coord_check,
    "parametrization of the reference": parametrization_of_the_reference,
    "parametrization of Hugging Face": parametrization_of_hugging_face,
}


def arithmetic() -> str:
    """A hash of some linear algebra and functions: equal where floating-point numbers round alike."""
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(48, 48, dtype=torch.float64, generator=generator)
    K = A @ A.T + torch.eye(48, dtype=torch.float64)
    results = [
        torch.linalg.cholesky(K),
        torch.linalg.eigvalsh(K),
        torch.linalg.solve(K, A),
        torch.erf(A).exp().log1p(),
        torch.softmax(A.float() @ A.float(), -1),
    ]
    return hashlib.sha256(b"".join(result.numpy().tobytes() for result in results)).hexdigest()[:16]


def environment() -> dict[str, str]:
    """What the last bits of the numbers depend on besides the package."""
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return versions | {"python": platform.python_version(), "arithmetic": arithmetic()}


@contextlib.contextmanager
def timed(name: str) -> Iterator[None]:
    """Prints how long a section took."""
    started = time.monotonic()
    yield
    print(f"{time.monotonic() - started:6.1f} s  {name}", file=sys.stderr, flush=True)


def record(names: list[str]) -> dict[str, Answer]:
    """The answers of some sections, each as it survives JSON."""
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")

    answers: dict[str, Answer] = {"environment": environment()}
    with timed("in total"):
        for name in names:
            with timed(name):
                try:
                    answers[name] = json.loads(json.dumps(SECTIONS[name]()))
                except Unavailable as reason:
                    answers[name] = f"{SKIPPED}{reason}"
    return answers


def leaves(answer: Answer, path: str = "") -> Iterator[tuple[str, Answer]]:
    """Every value with the way to it; of a list or mapping also its size."""
    if isinstance(answer, (dict, list)):
        yield path, f"{len(answer)} entries"
        entries = answer.items() if isinstance(answer, dict) else enumerate(answer)
        for key, value in entries:
            yield from leaves(value, f"{path}/{key}")
    else:
        yield path, answer


def numbers(sentence: str) -> list[str]:
    """The numbers in a sentence, whatever their order."""
    return sorted(re.findall(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?", sentence))


def differences(expected: Answer, actual: Answer, words: bool = False) -> list[str]:
    """A line for each value that is not the same to the last bit.

    Without `words` a sentence may be worded anew, as long as it holds the same numbers, and a printed table
    may be laid out anew.
    """
    before, after = dict(leaves(expected)), dict(leaves(actual))
    lines = []
    for path in [*before, *(path for path in after if path not in before)]:
        old, new = before.get(path, "nothing"), after.get(path, "nothing")
        if repr(old) == repr(new) or (not words and PRINTED in path.split("/")):
            continue
        sentences = isinstance(old, str) and isinstance(new, str) and " " in old and " " in new
        if sentences and not words and numbers(old) == numbers(new):
            continue
        lines.append(f"{path}: {old!r} was recorded, now {new!r}")
    return lines


def check(path: Path, names: list[str], words: bool) -> int:
    """Records again and prints what differs; how many values do."""
    expected = json.loads(path.read_text(encoding="utf-8"))
    actual = record(names)
    if expected["environment"] != actual["environment"]:
        print("The environment is another one, so numbers may differ in their last bits:")
        print("\n".join(differences(expected["environment"], actual["environment"], words=True)))

    count = 0
    for name in names:
        answers = expected.get(name, f"{SKIPPED}never recorded"), actual[name]
        missing = [a for a in answers if isinstance(a, str) and a.startswith(SKIPPED)]
        if missing:
            print(f"{name}: {missing[-1]}")
            continue
        lines = differences(*answers, words)
        print("\n".join(f"{name}{line}" for line in lines), end="\n" if lines else "")
        count += len(lines)
    print(f"{count} differences")
    return count


def main() -> int:
    """The command line of this script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the answers to this file")
    parser.add_argument("--check", type=Path, help="compare with the answers in this file")
    parser.add_argument("--only", action="append", choices=SECTIONS, help="a section; may be repeated")
    parser.add_argument("--words", action="store_true", help="compare sentences too")
    arguments = parser.parse_args()
    if (arguments.out is None) == (arguments.check is None):
        parser.error("give either --out or --check")

    print(f"transfer_bo from {Path(tb.__file__).parent}", file=sys.stderr)
    names = arguments.only or list(SECTIONS)
    if arguments.check:
        return int(check(arguments.check, names, arguments.words) > 0)
    text = json.dumps(record(names), indent=1, ensure_ascii=False)
    arguments.out.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
