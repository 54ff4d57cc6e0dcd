import numpy as np
import pytest
from scipy import stats

from util.statistics import mean_and_error, paired_difference, per_image, steadiness


def test_standard_error():
    mean = mean_and_error([1.0, 2.0, 4.0])
    assert mean.value == pytest.approx(7 / 3)
    assert mean.error == pytest.approx(stats.sem([1.0, 2.0, 4.0]))
    assert mean_and_error([3.0]).error is None
    assert mean_and_error([float("inf"), 1.0]).error is None


def test_seeds_of_an_image_are_one_observation():
    values = {("a", 0): 1.0, ("a", 1): 3.0, ("b", 0): 5.0}
    assert per_image(values) == {"a": 2.0, "b": 5.0}


def test_paired_difference_equals_the_paired_t_test():
    rng = np.random.default_rng(0)
    level = 10 * rng.standard_normal(8)  # differs between images far more than the methods do
    a = {(str(i), 0): level[i] + 1 + 0.1 * rng.standard_normal() for i in range(8)}
    b = {(str(i), 0): level[i] + 0.1 * rng.standard_normal() for i in range(8)}
    paired = paired_difference(a, b)
    interval = stats.ttest_rel(list(a.values()), list(b.values())).confidence_interval(0.95)
    assert (paired.low, paired.high) == pytest.approx((interval.low, interval.high))
    assert paired.low > 0.8
    assert paired.high < 1.2


def test_paired_difference_uses_common_images_and_seeds_only():
    paired = paired_difference({("a", 0): 2.0, ("a", 1): 9.0}, {("a", 0): 1.0, ("b", 0): 7.0})
    assert (paired.difference, paired.low, paired.n) == (1.0, None, 1)
    with pytest.raises(ValueError, match="in common"):
        paired_difference({("a", 0): 1.0}, {("a", 1): 1.0})


def test_steadiness_is_the_pixelwise_standard_deviation():
    rng = np.random.default_rng(0)
    images = [
        np.clip(128 + 5 * rng.standard_normal((40, 40, 3)), 0, 255).astype(np.uint8)
        for _ in range(6)
    ]
    assert steadiness(images) == pytest.approx(5 * 0.95, rel=0.05)  # c4(6) = 0.95
    assert steadiness(images[:1] * 5) == 0
    with pytest.raises(ValueError, match="at least 5"):
        steadiness(images[:4])
