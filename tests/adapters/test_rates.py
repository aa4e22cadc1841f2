"""Default learning rates: one for each kind, smaller for larger models, close to what papers say."""

import subprocess
import sys
from typing import get_args

import pytest

from ludus.adapters.rates import KINDS, default_rate
from ludus.adapters.settings import AnyAdapter


def test_every_kind_of_adapter_has_a_rate_with_a_reason():
    kinds = {kind for settings in get_args(AnyAdapter) for kind in get_args(settings.model_fields["kind"].annotation)}
    for kind in kinds | {"qlora", "rslora", "pissa"}:
        rate, reason = default_rate(kind, 124e6)
        assert 0 < rate < 1
        assert reason.startswith("for 124 M parameters: ")


@pytest.mark.parametrize("kind", KINDS)
def test_rates_fall_with_the_size_of_the_model(kind):
    rates = [default_rate(kind, parameters)[0] for parameters in (1e5, 1e6, 1e8, 7e9, 70e9)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == rates[1], "below a million parameters nothing was seen to need more"


def test_rates_are_those_of_the_papers_where_they_say_one():
    assert default_rate("qlora", 7e9)[0] == pytest.approx(2e-4)
    assert default_rate("qlora", 13e9)[0] == pytest.approx(2e-4, rel=0.25)
    assert default_rate("qlora", 33e9)[0] == pytest.approx(1e-4, rel=0.25)
    assert default_rate("vera", 7e9)[0] == pytest.approx(4e-3)
    assert default_rate("full", 7e9)[0] == pytest.approx(2e-5)


def test_an_unknown_kind_has_none_and_nothing_heavy_is_imported():
    with pytest.raises(KeyError):
        default_rate("nothing", 1e6)
    code = "import sys, ludus.adapters.rates, ludus.evaluation.compare_settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
