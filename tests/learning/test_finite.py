"""A loss that is no number stops the run before anything of it is logged or saved."""

import pytest

from ludus.base.errors import DataError
from ludus.learning.hooks import finite


class AtStepThree:
    step = 3


@pytest.mark.parametrize("broken", [{"loss": float("nan")}, {"gradient_norm": float("inf")}])
def test_a_loss_that_is_no_number_is_an_error_that_says_what_to_do(broken):
    with pytest.raises(DataError, match=r"step 3: .* lower learning rate"):
        finite(AtStepThree(), {"loss": 1.0, "gradient_norm": 1.0} | broken)  # type: ignore[arg-type]


def test_numbers_pass():
    finite(AtStepThree(), {"loss": 1.0, "gradient_norm": 0.0})  # type: ignore[arg-type]
