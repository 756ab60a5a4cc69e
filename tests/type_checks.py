"""The run-time type checker of the tests: see `conftest.py`."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""Beartype that takes an int for a float, as type checkers do."""
