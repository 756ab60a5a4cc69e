"""`transfer-bo coord-check`: a table, a picture, and an exit code for scripts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from transfer_bo.cli import app
from transfer_bo.parametrization import RULES, coordcheck


@pytest.mark.parametrize(("tolerance", "code", "words"), [(99.0, 0, "Passed"), (-99.0, 1, "Failed")])
def test_coord_check(
    write_study: Callable[..., Path],
    tolerance: float,
    code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The study's rule and HPs are checked; layers that fail make exit code 1; the picture is in `out`."""
    check, asked = coordcheck.coordinate_check, {}

    def quick(*args: Any, **options: Any) -> coordcheck.CoordCheck:
        asked.update(options, base=args[1], rule=args[2:])
        quicker = {"axes": ("width",), "factors": (1, 2), "seeds": (0, 1), "steps": 1, "tolerance": tolerance}
        return check(*args, **{**options, **quicker})

    monkeypatch.setattr(coordcheck, "coordinate_check", quick)

    result = CliRunner().invoke(app, ["coord-check", str(write_study())])

    assert code == result.exit_code, result.output
    assert words in result.stdout
    assert "unembedding" in result.stdout
    assert (RULES["complete_d_p_token_half_life"], 1.0) == asked["rule"]
    assert {"lr": 0.01, "lr.embedding": 1.0} == asked["hps"]
    assert (16, 4) == (asked["base"].width, asked["base"].depth)
    assert [1] == [1 for _ in tmp_path.rglob("coord_check.png")]
