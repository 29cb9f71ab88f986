"""Mean and sample standard deviation of several runs."""

import pytest

from l2t_ray.reports.spread import Spread, spread, spread_text


def test_sample_standard_deviation_of_what_there_is():
    assert spread([0.4, None, 0.5, 0.6]) == (pytest.approx(0.5), pytest.approx(0.1), 3)
    assert spread([0.4]) == Spread(0.4, None, 1) and spread([None]) is None


def test_shown():
    assert spread_text(spread([0.4, 0.5, 0.6]), factor=100, digits=1) == "50.0 ± 10.0 (3)"
    assert spread_text(Spread(2, None, 1)) == "2.00 (1)" and spread_text(None) == "–"
