"""The JSON schema of a study file, for editors that complete keys and mark mistakes."""

from __future__ import annotations

from typing import Any

from transfer_bo.study_file.schema import StudyFile

__all__ = ["study_file_schema"]


def study_file_schema() -> dict[str, Any]:
    """JSON schema of a study file: its sections and keys, their types, ranges and defaults.

    What only shows when several keys are seen together is not in it; `transfer-bo run` checks that as well.
    """
    schema = StudyFile.model_json_schema()
    schema["properties"].pop("path")  # where the file is; not one of its keys
    schema["required"].remove("path")
    schema["anyOf"] = [{"required": ["data"]}, {"required": ["command"]}]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "Study file of transfer-bo",
        "description": "A study: HPs are searched on small proxies and projected to the target.",
    }
