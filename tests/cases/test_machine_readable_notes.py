"""Each warning is there for programs too: a code that does not change, and what the sentence is about."""

from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import pandas as pd
from generated_tables import ASK, PLAIN

import transfer_bo as tb
from transfer_bo.notes import Note, to_json


def test_warnings_and_notes_are_the_same_in_the_same_order() -> None:
    """Of a table with much to remark on; none is without a code of its own."""
    table = pd.concat([PLAIN, PLAIN]).assign(
        decay=[0, 0.1, 0.2] * 4, status=["done"] * 10 + ["melted", "failed"]
    )
    table.loc[5, "loss"] = np.nan

    suggestion = tb.suggest_from_runs(
        table, **ASK | {"hps": {"lr": "log", "decay": "log"}, "target": {"width": 1e6}}
    )
    notes = json.loads(json.dumps(suggestion.to_json(), allow_nan=False))["evidence"]["notes"]

    assert suggestion.warnings == [note["text"] for note in notes]
    assert {"rows_copied", "status_unknown", "hp_off_scale", "unit_of_target", "extrapolation"} <= {
        note["code"] for note in notes
    }
    assert "other" not in {note["code"] for note in notes}


def test_a_note_is_a_sentence() -> None:
    """With its code and details kept by copies, as tables make them."""
    note = Note("3 rows", "rows", rows=3)

    for same in (note, copy.deepcopy(note), pickle.loads(pickle.dumps(note))):
        assert ("3 rows", "rows", {"rows": 3}) == (same, same.code, same.details)
    assert [{"code": "other", "text": "plain", "details": {}}] == to_json(["plain"])
