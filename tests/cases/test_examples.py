"""The examples that search run as they are, in a process of their own."""

import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_per_module_search():
    """The main path ends with a verified suggestion and the parameter groups of the large model."""
    example = EXAMPLES / "per_module_search.py"
    run = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", str(example)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )

    assert 0 == run.returncode, run.stderr
    assert "predicted" in run.stdout
    assert 8 == len(re.findall("'weight_decay': [0-9.e-]+", run.stdout))
    assert len(example.read_text().splitlines()) < 60
