"""Noise levels of a process at its timesteps and between them, for networks that are told one."""

import torch
from torch import Tensor


class NoiseLevels:
    """log sqrt((1 - acp) / acp) of the timesteps of a process, and fractions between them."""

    def __init__(self, alphas_cumprod: Tensor) -> None:
        self._table = 0.5 * (1 / alphas_cumprod.double().cpu() - 1).log()
        self._on_device: dict[torch.device, Tensor] = {}

    @property
    def rise(self) -> bool:
        return bool((self._table.diff() > 0).all())

    def _at(self, device: torch.device) -> Tensor:
        """The table there, copied once: waiting for a GPU at every step would cost more."""
        if device not in self._on_device:
            dtype = torch.float32 if device.type == "mps" else torch.float64  # mps has no float64
            self._on_device[device] = self._table.to(dtype).to(device)
        return self._on_device[device]

    def sigmas(self, timesteps: Tensor, like: Tensor) -> Tensor:
        """sqrt((1 - acp) / acp) at timesteps [B], like `like`: [B]."""
        table = self._at(like.device)
        at = timesteps.to(table).clamp(0, len(table) - 1)
        below = at.floor().long().clamp(max=len(table) - 2)
        return torch.lerp(table[below], table[below + 1], at - below).exp().to(like)

    def timesteps(self, sigma: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Timesteps with noise of sigma [B], and the sigma that they have: one beyond the first or
        the last timestep counts as that."""
        table = self._at(like.device)
        level = sigma.to(table).log().clamp(table[0], table[-1])
        after = torch.searchsorted(table, level).clamp(1, len(table) - 1)
        low, high = table[after - 1], table[after]
        return (after - 1 + (level - low) / (high - low)).to(like), level.exp().to(like)
