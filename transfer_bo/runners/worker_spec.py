"""What a worker process is given: plain JSON, which it reads before it loads any library."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transfer_bo.runners.worker import THREAD_VARIABLES
from transfer_bo.study_file import StudyFile
from transfer_bo.verification.jobs import Job

__all__ = ["WorkerSpec"]


@dataclass(frozen=True)
class WorkerSpec:
    """One worker of a study."""

    study_file: StudyFile
    """The study that it works on."""

    slot: int
    """Which of the study's workers it is, from 0; a worker that replaces a dead one gets the same."""

    owner: str
    """Its name on the trials it runs, never used for another worker."""

    log: Path
    """File for everything it prints."""

    devices: str | None = None
    """CUDA_VISIBLE_DEVICES; None to leave it as it is."""

    jobs: tuple[Job, ...] | None = None
    """Runs of a verification to make; None to search."""

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of the process: libraries read them when they load, programs inherit them."""
        threads = dict.fromkeys(THREAD_VARIABLES, str(self.study_file.run.threads))
        return threads if self.devices is None else {**threads, "CUDA_VISIBLE_DEVICES": self.devices}

    def to_json(self) -> str:
        """The specification as JSON."""
        plain = {
            **vars(self),
            "study_file": self.study_file.model_dump(mode="json"),
            "log": str(self.log),
            "jobs": None if self.jobs is None else [job.to_json() for job in self.jobs],
        }
        return json.dumps(plain)

    @classmethod
    def from_json(cls, text: str) -> WorkerSpec:
        """The inverse of `to_json`."""
        plain: dict[str, Any] = json.loads(text)
        study_file = StudyFile.model_validate_json(json.dumps(plain["study_file"]))
        jobs = None if plain["jobs"] is None else tuple(map(Job.from_json, plain["jobs"]))
        return cls(**{**plain, "study_file": study_file, "log": Path(plain["log"]), "jobs": jobs})
