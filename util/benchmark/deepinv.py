"""deepinv's DPS with its DiffUNet, timed where the package is installed."""

import torch

from guided_diffusion.unet import UNetConfig

_STEPS = 3  # deepinv calls the network once less than it has time steps


def time_deepinv(config: UNetConfig, size: int, device: torch.device, clock, repeats: int) -> str:
    """One line: milliseconds per step of deepinv's DPS, or why there are none.

    The task is denoising, so that no operator adds to the time.
    """
    large = config.num_channels == 256
    levels = (1, 1, 2, 2, 4, 4)
    if config.level_multipliers() != levels or config.num_channels not in (128, 256):
        return "deepinv: skipped, its DiffUNet has the FFHQ or ImageNet architecture only"
    try:
        import deepinv
        from deepinv.sampling import DPS
    except ImportError as error:
        return f"deepinv: skipped, not installed ({error})"
    network = deepinv.models.DiffUNet(pretrained=None, large_model=large).to(device).eval()
    physics = deepinv.physics.Denoising(deepinv.physics.GaussianNoise(0.01))
    sampler = DPS(network, num_steps=_STEPS, device=device, dtype=torch.float32)
    y = torch.rand(1, 3, size, size, device=device)

    def run() -> None:
        sampler(y, physics, x_init=torch.randn_like(y))

    run()
    times = sorted(clock.ms(run) for _ in range(repeats))
    per_step = times[len(times) // 2] / (_STEPS - 1)
    return f"deepinv {deepinv.__version__} DPS, DiffUNet, batch 1: {per_step:.1f} ms per step"
