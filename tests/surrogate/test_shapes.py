"""Annotations of the surrogate are checked while the tests run."""

import jaxtyping
import pytest

from transfer_bo.dimension import Dimension
from transfer_bo.scale import Scale
from transfer_bo.surrogate.coordinates import Coordinates

LR = Dimension("lr", "log", 2.0**-12, 2.0**-2)


def test_an_argument_of_another_type_is_refused() -> None:
    """The import hook of `conftest.py` reaches the surrogate: an axis that is no string is an error."""
    with pytest.raises(jaxtyping.TypeCheckError):
        Coordinates([LR], Scale(width=32), [1])
