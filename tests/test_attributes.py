"""The keys that are stored on studies and trials."""

import optuna
import pytest

import transfer_bo as tb
from transfer_bo import attributes
from transfer_bo.attributes import ATTR_PREFIX, FORMAT_ATTR, FORMAT_VERSION, SETTINGS_ATTR

OPTUNAS_OWN = {"FIXED_PARAMS_ATTR"}


def test_keys_are_ours_and_differ() -> None:
    """Every key begins with the prefix, so it is no attribute of a user's, and no two are the same."""
    names = [name for name in attributes.__all__ if name.endswith("_ATTR") and name not in OPTUNAS_OWN]
    keys = [getattr(attributes, name) for name in names]

    assert len(keys) == len(set(keys))
    assert all(key.startswith(ATTR_PREFIX) for key in keys)


def test_settings_of_a_later_release_are_kept() -> None:
    """An older release that works on a study removes no key of a newer one, nor lowers its format version."""
    ladder = tb.Ladder([tb.Scale(width=32)])
    study = optuna.create_study(sampler=tb.TransferSampler(ladder=ladder, target=tb.Scale(width=64), seed=0))
    study.optimize(lambda trial: ladder.suggest(trial).width, n_trials=1)
    assert FORMAT_VERSION == study.user_attrs[FORMAT_ATTR]

    study.set_user_attr(SETTINGS_ATTR, study.user_attrs[SETTINGS_ATTR] | {"colour": "blue", "seed": 7})
    study.set_user_attr(FORMAT_ATTR, FORMAT_VERSION + 1)
    with pytest.warns(UserWarning, match="colour"):
        study.optimize(lambda trial: ladder.suggest(trial).width, n_trials=1)

    assert {"colour": "blue", "seed": 0}.items() <= study.user_attrs[SETTINGS_ATTR].items()
    assert FORMAT_VERSION + 1 == study.user_attrs[FORMAT_ATTR]
