"""From a table of runs to what to set at the target, or into a new study as prior data.

read                a DataFrame, records, a file or an Optuna study -> one table
files               text, JSON and Parquet files, packed or not -> a table
optuna_study        an Optuna study -> a table
columns             what each column is: checked, or guessed
cells               what a cell holds: nothing, a number, a category
history             a row for each step -> a row for each run
status              how the run of each row ended
divergence          finished runs that diverged in fact
cleaning            a table -> typed runs and the HPs that vary
thinning            of too many rows, those worth fitting
fit                 runs -> surrogate -> projection
held_out            the largest scales left out and predicted
rank_correlation    whether cheap scales rank settings as expensive ones do
published_laws      what the literature would set
evidence            what a suggestion rests on
tensor_settings     a suggestion in base coordinates -> settings of each tensor
suggest             all of it, and the answer
warm_start          runs of a source study -> prior data of a new study
"""

from transfer_bo.run_table.suggest import RunsFit, RunsSuggestion, fit_runs, suggest_from_runs

__all__ = ["RunsFit", "RunsSuggestion", "fit_runs", "suggest_from_runs"]
