"""What several samples of one image have in common: their mean, and how much they differ."""

import torch
from torch import Tensor


class Spread:
    """Mean and standard deviation of the samples [3, H, W] of one image, clamped to [-1, 1] as they
    are saved, before they are rounded; with `grey` of the mean of their channels.

    By the recurrence of Welford (1962), so that a large photograph is kept twice, and not as often
    as it is sampled. `finite` tells whether every sample was.
    """

    def __init__(self, grey: bool = False) -> None:
        self.grey, self.finite, self.count = grey, True, 0
        self._mean = self._squares = torch.zeros((), dtype=torch.float64)

    def add(self, sample: Tensor) -> None:
        self.finite = self.finite and bool(torch.isfinite(sample).all())
        if self.grey:
            sample = sample.mean(0, keepdim=True).expand_as(sample)
        x = sample.clamp(-1, 1).double()
        self.count += 1
        difference = x - self._mean
        self._mean = self._mean + difference / self.count
        self._squares = self._squares + difference * (x - self._mean)

    @property
    def mean(self) -> Tensor:
        """[3, H, W] in [-1, 1]; it has the least expected squared error of all estimates, if the
        samples are the posterior's."""
        return self._mean.float()

    @property
    def deviation(self) -> Tensor:
        """[3, H, W]: the standard deviation (n - 1) of every value, on the range [-1, 1]. Needs two
        samples."""
        return (self._squares / (self.count - 1)).sqrt().float()
