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
