"""Everything that decides the next trial: its rung and its HPs.

- `state`: what is known when a trial asks (`SearchState`).
- `budget`: what runs cost, what was spent, which rungs are affordable.
- `exclusions`: rungs, choices and points that failed and are not tried again.
- `startup`: the runs before the surrogate is used.
- `policy`: the order of a search, from start-up over checks to the acquisition function.
- `acquisition`: the run that teaches most about the optimum at the target per unit of cost.
- `trust_region`: the second stage of a search with many multipliers.
- `pruner`: when to stop a run early; the only module that imports Optuna.

Nothing here writes to a study: functions read records and settings and return a proposal.
"""
