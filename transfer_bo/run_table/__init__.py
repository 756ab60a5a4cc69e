"""From a table of past runs to what to set at the target: `suggest_from_runs`.

read.py      a DataFrame, a file or an Optuna study -> one table
columns.py   which column is what: checked, or guessed
rows.py      a table -> typed runs: what diverged, what says nothing, what is too much to fit
fit.py       runs -> surrogate -> projection
suggest.py   all of it, and the answer
"""

from transfer_bo.run_table.suggest import RunsFit, RunsSuggestion, fit_runs, suggest_from_runs

__all__ = ["RunsFit", "RunsSuggestion", "fit_runs", "suggest_from_runs"]
