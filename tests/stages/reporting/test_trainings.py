"""What several trainings of each method say about another one."""

from __future__ import annotations

import numpy as np
import pytest

from stages.reporting.trainings import add_errors


def test_twice_the_error_covers_19_of_20_trainings_by_what_all_rows_say():
    """Relative spreads of 0.1 and 0.2 over two trainings each pool to sqrt(0.025); t of two degrees is 4.3027."""
    a = {"kid": 0.1, "kid_spread": 0.01, "trainings": 2}
    b = {"kid": 0.2, "kid_spread": 0.04, "trainings": 2}
    c = {"kid": 0.3, "kid_spread": None, "trainings": 1}
    add_errors([a, b, c], "kid")
    assert a["kid_training_se"] == pytest.approx(0.1 * 0.025**0.5 / 2**0.5 * 4.3027 / 2, rel=1e-4)
    assert b["kid_training_se"] == pytest.approx(2 * a["kid_training_se"]) and c["kid_training_se"] is None


def test_a_spread_of_more_trainings_counts_for_more():
    """Variances of 0.04 with one degree of freedom and 0.01 with four pool to 0.016; t of five degrees is 2.5706."""
    a = {"kid": 1.0, "kid_spread": 0.2, "trainings": 2}
    b = {"kid": 1.0, "kid_spread": 0.1, "trainings": 5}
    add_errors([a, b], "kid")
    assert b["kid_training_se"] == pytest.approx((0.016 / 5) ** 0.5 * 2.5706 / 2, rel=1e-4)


def test_a_mean_that_is_not_above_zero_has_the_spread_of_its_own_trainings():
    """0.03 over two trainings, whose t of one degree is 12.7062; the other row has its own two degrees in all."""
    a = {"kid": 0.0, "kid_spread": 0.03, "trainings": 2}
    b = {"kid": 1.0, "kid_spread": 0.2, "trainings": 3}
    add_errors([a, b], "kid")
    assert a["kid_training_se"] == pytest.approx(0.03 / 2**0.5 * 12.7062 / 2, rel=1e-4)
    assert b["kid_training_se"] == pytest.approx(0.2 / 3**0.5 * 4.3027 / 2, rel=1e-4)


def test_a_small_kid_has_the_error_of_its_images_and_widens_no_others():
    """Trainings differ by 5 % of KID, and each by its images; a KID of 3 times their error says nothing of the 5 %."""
    draws, truth, images = np.random.default_rng(0), np.array([0.1] * 7 + [0.003]), 0.001
    covered, wide = np.zeros(8), []
    for _ in range(1500):
        kid = truth * (1 + 0.05 * draws.normal(size=(2, 8))) + images * draws.normal(size=(2, 8))
        rows = [
            {"kid": mean, "kid_spread": spread, "kid_se": images, "trainings": 2}
            for mean, spread in zip(kid.mean(0), kid.std(0, ddof=1))
        ]
        add_errors(rows, "kid")
        errors = np.array([row["kid_training_se"] for row in rows])
        covered += abs(kid.mean(0) - truth) <= 2 * errors
        wide.append(errors[0])
    assert (covered / 1500 > 0.92).all(), covered / 1500
    assert np.mean(wide) == pytest.approx((0.005**2 + images**2) ** 0.5 / 2**0.5 * 2.3646 / 2, rel=0.1)
