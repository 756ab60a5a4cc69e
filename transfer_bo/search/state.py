"""What is known when the next trial is chosen."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from transfer_bo.dimension import Dimension
from transfer_bo.records import FinishedRun, Outcome, Run, StudySettings, finished_runs

__all__ = ["SearchState"]


@dataclass(frozen=True)
class SearchState:
    """A study as it stands when a trial asks for its rung and HPs.

    Attributes:
        settings: ladder, target, costs, budget and priors.
        runs: all other runs, with those of source studies and unfinished ones.
        dimensions: the searched HPs.
        maximize: whether larger metrics are better.
        number: number of the trial; with the seed of the settings it determines all randomness.
        n_startup: number of start-up runs, or None to derive it from the number of HPs and the budget.
        frozen: HPs that the second stage leaves where they are.
        stored_outcomes: numbers of the runs whose outcome `objective` stored. Only these can rule out a rung,
            a choice or a point: any other failure may be the machine's.
    """

    settings: StudySettings
    runs: Sequence[Run]
    dimensions: Sequence[Dimension]
    maximize: bool
    number: int
    n_startup: int | None = None
    frozen: Collection[str] = ()
    stored_outcomes: Collection[int] = ()

    @property
    def searched(self) -> list[Run]:
        """Runs of the search that have begun."""
        return [run for run in self.runs if run.purpose == "search" and run.outcome is not Outcome.WAITING]

    @property
    def finished(self) -> list[FinishedRun]:
        """Finished runs, with those of source studies."""
        return finished_runs(self.runs)

    @property
    def with_stored_outcome(self) -> list[Run]:
        """Runs at a rung whose outcome `objective` stored, or that violated a constraint."""
        return [
            run
            for run in self.runs
            if run.scale in self.settings.scales
            and (run.number in self.stored_outcomes or not run.is_feasible)
        ]

    def generator(self) -> torch.Generator:
        """Source of randomness of this trial."""
        seed = np.random.SeedSequence([self.settings.seed, self.number]).generate_state(1)[0]
        return torch.Generator().manual_seed(int(seed))
