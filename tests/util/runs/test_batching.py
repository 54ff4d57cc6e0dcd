import pytest
import torch

from util.runs.batching import fitting_batch, is_out_of_memory, largest_batch


@pytest.mark.parametrize(
    ("free", "limit", "expected"),
    [(1000, 64, 17), (1000, 5, 5), (1000, 1, 1), (120, 64, 1), (10, 64, 1), (1e9, 64, 64)],
)
def test_linear_memory(free, limit, expected):
    """50 bytes for the network's work space and 50 per image."""
    assert largest_batch(lambda size: 50 + 50 * size, free, limit) == expected


def test_prediction_that_was_too_large_is_lowered():
    def peak(size: int) -> float:
        if size > 10:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 10.0 * size

    assert 2 <= largest_batch(peak, 1e6, 64) <= 10


def test_even_two_images_are_too_many():
    def peak(size: int) -> float:
        if size > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 10.0

    assert largest_batch(peak, 1e6, 64) == 1


def test_other_errors_are_not_hidden():
    def peak(size: int) -> float:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        largest_batch(peak, 1e6, 64)


def test_cpu_takes_one_image_without_trying():
    def run(size: int) -> None:
        raise AssertionError

    assert fitting_batch(run, torch.device("cpu"), 100) == 1


def test_out_of_memory_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert not is_out_of_memory(ValueError("out of memory"))
