"""Priors whose posteriors are known: natural images as one Gaussian, or as a mixture of several.

The posterior of x_0 given y = A x_0 + N(0, sigma^2), A linear, is then a mixture as well. It is
computed in float64, in the coordinates in which the covariance of its modes is diagonal.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from guided_diffusion.gaussian_diffusion import GaussianDiffusion
from guided_diffusion.measurements import LinearOperator
from guided_diffusion.natural_images import NaturalImages
from guided_diffusion.noise_levels import NoiseLevels


class ExactDenoiser:
    """The `Model` of x_0 = m_k + N(0, V) with probability w_k, V that of NaturalImages: what a
    perfectly trained network would predict, at whole timesteps and between them.

    weights: w, [K]; means: m, [K, 3, H, W]
    """

    def __init__(self, weights: Tensor, means: Tensor, diffusion: GaussianDiffusion) -> None:
        channels, height, width = means.shape[1:]
        self._images = NaturalImages((channels, height, width), means)
        self._log_weights = weights.log().to(means)
        self._means = self._images.coefficients(means)
        self._levels = NoiseLevels(torch.from_numpy(diffusion.alphas_cumprod))

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        """eps [B, 3, H, W] for x_t [B, 3, H, W], original timesteps t [B], fractions included."""
        sigma = self._levels.sigmas(t, x_t).view(-1, 1, 1, 1)
        a = (1 + sigma**2).rsqrt()
        b = sigma * a
        c = self._images.coefficients(x_t)
        # eps = b (a^2 V + b^2)^-1 (x_t - a E[m_k | x_t]), by Tweedie's formula
        variances = a**2 * self._images.variances + b**2
        if len(self._means) > 1:
            c = c - a * self._expected_mean(c, a, variances)
        return self._images.image(b * c / variances)

    def _expected_mean(self, c: Tensor, a: Tensor, variances: Tensor) -> Tensor:
        gap = (c[:, None] - a[:, None] * self._means).square() / variances[:, None]
        share = (self._log_weights - 0.5 * gap.flatten(2).sum(2)).softmax(1)
        return torch.einsum("bk,kchw->bchw", share, self._means)


class ModePosterior:
    """What a measurement leaves of one mode N(m, V): the covariance
    C = (V^-1 + A^T A / sigma^2)^-1, the same for all m and y.

    variances: eigenvalues of C, [d], the largest first; d = 3 H W
    directions: its eigenvectors, columns of [d, d], over flattened images
    """

    def __init__(self, operator: LinearOperator, sigma: float) -> None:
        like = torch.empty(0, dtype=torch.float64)
        images = NaturalImages(operator.context.shape, like)
        unit = torch.eye(math.prod(images.shape)).to(like).view(-1, *images.shape)
        basis = images.image(unit)
        measured = operator(basis).flatten(1)  # one row for each cosine
        precision = measured @ measured.T / sigma**2
        precision.diagonal().add_(1 / images.variances.flatten())
        values, vectors = torch.linalg.eigh(precision)
        self.variances = 1 / values
        self.directions = basis.flatten(1).T @ vectors
        self._measured = vectors.T @ measured  # (A U)^T, U the directions
        self._operator, self._sigma = operator, sigma
        self._images = images

    def prior_means(self, count: int, distance: float) -> Tensor:
        """m_k, [count, 3, H, W]: equally spaced about 0 along the first direction, `distance`
        standard deviations sqrt(variances[0]) apart."""
        places = torch.arange(count, dtype=torch.float64) - (count - 1) / 2
        along = self.directions[:, 0] * self.variances[0].sqrt()
        return (distance * places[:, None] * along).view(count, *self._images.shape)

    def draw_images(self, count: int, generator: torch.Generator) -> Tensor:
        """Images of N(0, V), [count, 3, H, W]."""
        return self._images.draw(count, generator)

    def given(self, y: Tensor, weights: Tensor, means: Tensor) -> "Posterior":
        """The posterior given one measurement y [1, ...] under the prior's weights [K] and means
        [K, 3, H, W]."""
        gap = (y - self._operator(means)).flatten(1)
        pulled = gap @ self._measured.T / self._sigma**2
        shifts = self.variances * pulled
        # log N(y; A m, A V A^T + sigma^2 I), the inverse by Woodbury's identity
        misfit = gap.square().sum(1) / self._sigma**2 - (pulled * shifts).sum(1)
        shares = (weights.log() - 0.5 * misfit).softmax(0)
        centres = means.flatten(1) @ self.directions + shifts
        return Posterior(shares, centres, self.variances, self.directions, self._images.shape)


@dataclass(frozen=True)
class Posterior:
    """The mixture sum_k weights_k N(centres_k, diag(variances)) in the coordinates of directions.

    weights: [K]; centres: [K, d]; variances: [d], the largest first; directions: columns of [d, d],
    over flattened images of `shape`
    """

    weights: Tensor
    centres: Tensor
    variances: Tensor
    directions: Tensor
    shape: tuple[int, int, int]

    @cached_property
    def mean(self) -> Tensor:
        """[d]"""
        return self.weights @ self.centres

    @cached_property
    def spread(self) -> Tensor:
        """Variances of the whole mixture along the directions, [d]; their sum is the trace of its
        covariance."""
        return self.variances + self.weights @ (self.centres - self.mean).square()

    def coordinates(self, x: Tensor) -> Tensor:
        """Images [N, 3, H, W] -> [N, d], in float64."""
        return x.flatten(1).double() @ self.directions

    def image(self, c: Tensor) -> Tensor:
        """The way back."""
        return (c @ self.directions.T).view(-1, *self.shape)

    def shares(self, c: Tensor) -> Tensor:
        """p(k | x), [N, K], of images at coordinates c [N, d]."""
        gap = (c[:, None] - self.centres).square() / self.variances
        return (self.weights.log() - 0.5 * gap.sum(2)).softmax(1)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Coordinates of exact samples, [count, d]."""
        modes = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        z = torch.randn(count, len(self.variances), generator=generator).to(self.variances)
        return self.centres[modes] + self.variances.sqrt() * z
