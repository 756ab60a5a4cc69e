"""What an import costs, and what it must not bring along."""

import subprocess
import sys

import pytest

import transfer_bo

BELOW_THE_STUDY = ["scale", "space", "records", "surrogate", "parametrization", "projection", "training"]


def _python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stderr
    return done.stdout.strip()


def test_import_is_light() -> None:
    """`import transfer_bo` and the nouns load neither torch nor Optuna, nor anything else heavy."""
    heavy = "{'torch', 'optuna', 'gpytorch', 'botorch', 'numpy', 'pandas', 'scipy', 'matplotlib', 'pydantic'}"
    loaded = _python(
        "import sys, transfer_bo; transfer_bo.Scale(width=64); transfer_bo.HP; transfer_bo.TransferError;"
        f"print(sorted({heavy} & set(sys.modules)))"
    )

    assert "[]" == loaded


def test_the_maths_runs_without_optuna() -> None:
    """What stands below the study can be imported where Optuna is not installed."""
    imports = "; ".join(f"import transfer_bo.{module}" for module in BELOW_THE_STUDY)

    assert "" == _python(f"import sys; sys.modules['optuna'] = None; {imports}")


@pytest.mark.parametrize("name", transfer_bo.__all__)
def test_every_public_name_resolves(name: str) -> None:
    """A name in `__all__` is found where `_HOME` says, and `dir` shows it."""
    assert getattr(transfer_bo, name) is not None
    assert name in dir(transfer_bo)


def test_an_unknown_name_is_an_attribute_error() -> None:
    """Lazy names must not hide a typo."""
    with pytest.raises(AttributeError, match="no attribute 'Ladders'"):
        _ = transfer_bo.Ladders


def test_a_suggestion_loads_neither_optuna_nor_what_draws() -> None:
    """What the first answer from a table does not need is not imported for it."""
    heavy = "{'optuna', 'matplotlib', 'pydantic', 'scipy.stats', 'torch._dynamo'}"
    loaded = _python(
        "import sys, transfer_bo.cli.suggest, transfer_bo.run_table, transfer_bo.display.runs_suggestion;"
        f"print(sorted({heavy} & set(sys.modules)))"
    )

    assert "[]" == loaded


def test_a_model_on_the_meta_device_needs_no_compiler() -> None:
    """Normal draws without values do not load the compiler of PyTorch."""
    loaded = _python(
        "import sys, torch; from transfer_bo.parametrization.builds import build_meta\n"
        "model = build_meta(lambda scale: torch.nn.Embedding(8, 4), None)\n"
        "print(model.weight.is_meta, 'torch._dynamo' in sys.modules)"
    )

    assert "True False" == loaded
