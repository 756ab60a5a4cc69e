"""A suggestion in base coordinates, as what each tensor gets."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from source_studies import past_runs
from torch import nn
from typer.testing import CliRunner

import transfer_bo as tb
from transfer_bo.cli import app
from transfer_bo.errors import ParametrizationError
from transfer_bo.parametrization.builds import build_real, parameters_of
from transfer_bo.run_table.tensor_settings import ModelSpec, hps_of_tensors

MODEL = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))

    def forward(self, x):
        return x + self.mlp(x)

class Model(nn.Module):
    def __init__(self, width, depth):
        super().__init__()
        self.embedding = nn.Embedding(32, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.unembedding = nn.Linear(width, 32, bias=False)

    def forward(self, tokens):
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.unembedding(x)

def build_model(scale):
    return Model(int(scale.width), int(scale.depth))

number = 3
"""
BASE, TARGET = tb.Scale(width=16, depth=2), tb.Scale(width=64, depth=4)


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    """A user's file with a model."""
    path = tmp_path / "my_model.py"
    path.write_text(MODEL)
    return path


def build_model(scale: tb.Scale) -> nn.Module:
    """The model of the file."""
    names: dict[str, Any] = {}
    exec(MODEL, names)
    return names["build_model"](scale)  # type: ignore[no-any-return]


def test_settings_are_those_the_parametrization_applies() -> None:
    """Optimizer options and initial spread of every tensor, against a model that was really set up."""
    params = {"lr": 0.01, "beta2": 0.98, "lr.embedding": 3.0, "init_std": 0.5, "batch_tokens": 2**18}
    found, notes = ModelSpec(build_model, BASE).tensors(params, TARGET)
    hps = {"lr": 0.01, "one_minus_beta2": 1 - 0.98, "lr.embedding": 3.0, "init_std": 0.5}
    p = tb.parametrize(build_model, base=BASE, target=TARGET)
    model = build_model(TARGET)
    p.initialize(model, hps)
    drawn, before = parameters_of(model), parameters_of(build_real(build_model, BASE, seed=0))
    groups = {id(tensor): group for group in p.param_groups(model, hps) for tensor in group["params"]}

    def spread(values: torch.Tensor) -> float:
        return float(values.detach().double().square().mean().sqrt())

    assert ["batch_tokens is no setting of a tensor: set it for the whole run."] == notes
    assert list(drawn) == [tensor["name"] for tensor in found]
    for tensor in found:
        group = groups[id(drawn[tensor["name"]])]
        assert (group["lr"], group["eps"], group["weight_decay"]) == (
            tensor["lr"],
            tensor["eps"],
            tensor["weight_decay"],
        )
        assert group["betas"] == (tensor["beta1"], tensor["beta2"])
        ratio = spread(drawn[tensor["name"]]) / spread(before[p.tensors[tensor["name"]].base_name])
        assert math.isclose(ratio, tensor["init"], rel_tol=1e-5)  # values are drawn in float32


def test_names_of_a_table() -> None:
    """Common names of HPs are understood, others are handed back."""
    hps, foreign = hps_of_tensors({"learning_rate": 0.1, "beta1": 0.9, "wd": 0.2, "warmup": 0.01})

    assert {"lr": 0.1, "one_minus_beta1": 1 - 0.9, "weight_decay": 0.2} == hps
    assert ["warmup"] == foreign


def test_the_command_says_what_each_tensor_gets(model_file: Path, tmp_path: Path) -> None:
    """With --model the JSON has a list of tensors, and the axes that the runs lack come from the base."""
    table = past_runs(2).rename(columns={"n_params": "width"})
    table["width"] = table["width"] / 1e8 * 16
    table.to_csv(tmp_path / "runs.csv", index=False)
    said = CliRunner().invoke(
        app,
        [
            *["suggest", "--runs", str(tmp_path / "runs.csv"), "--axis", "width", "--hp", "lr:log"],
            *[
                "--hp",
                "beta2:one_minus",
                "--loss",
                "loss",
                "--target",
                "width=128",
                "--no-held-out",
                "--json",
            ],
            *["--model", f"{model_file}:build_model", "--base", "width=16", "--base", "depth=2"],
        ],
    )
    found = json.loads(said.stdout)

    assert [128, 256] in [tensor["shape"] for tensor in found["tensors"]]
    assert {tensor["name"]: tensor for tensor in found["tensors"]}["embedding.weight"]["lr"] == pytest.approx(
        found["params"]["lr"]
    )
    assert [] == found["evidence"]["reference_laws"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model", "my_model.py", "--base", "width=16"], "names no function"),
        (["--model", "no_such.py:f", "--base", "width=16"], "no_such.py is not a file"),
        (["--model", "no_such_module:f", "--base", "width=16"], "ModuleNotFoundError"),
        (["--model", "FILE:nothing", "--base", "width=16"], "no function 'nothing'"),
        (["--model", "FILE:number", "--base", "width=16"], "no function 'number'"),
        (["--model", "FILE:build_model"], "--base width=64"),
        (["--model", "FILE:build_model", "--base", "depth=2"], "has no n_params"),
        (["--model", "FILE:build_model", "--base", "n_params=16", "--coordinates", "raw"], "raw coordinates"),
        (["--base", "width=16"], "--base goes with --model"),
        (["--rule", "mup"], "--rule goes with --model"),
    ],
)
def test_a_model_that_can_not_be_used(flags: list[str], words: str, model_file: Path, tmp_path: Path) -> None:
    """One sentence and exit code 2."""
    past_runs(1).to_csv(tmp_path / "runs.csv", index=False)
    flags = [flag.replace("FILE", str(model_file)) for flag in flags]
    common = ["--axis", "n_params", "--hp", "lr:log", "--loss", "loss", "--target", "n_params=1e9"]
    said = CliRunner().invoke(app, ["suggest", "--runs", str(tmp_path / "runs.csv"), *common, *flags])

    assert 2 == said.exit_code
    assert words in said.stderr.replace("\n", " ")
    assert 1 == said.stderr.count("\n")


def test_a_base_without_a_model_is_refused() -> None:
    """And a model without a base."""
    ask: dict[str, Any] = {"axes": ["n_params"], "hps": {"lr": "log"}, "target": {"n_params": 1e9}}
    with pytest.raises(ParametrizationError):
        tb.suggest_from_runs(past_runs(1), base=BASE, **ask)
    with pytest.raises(ParametrizationError, match="base"):
        tb.suggest_from_runs(past_runs(1), build_model=build_model, **ask)
