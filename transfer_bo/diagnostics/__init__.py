"""How well do hyperparameters transfer: rates, metrics, importance, trajectory decomposition.

Everything here takes plain tables of runs (or, for the decomposition, a model in training) and returns
numbers with intervals; `diagnose` puts the table's part together for a whole study.
"""
