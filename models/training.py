"""A training run of a diffusion prior.

The loss is the hybrid one of Nichol & Dhariwal 2021 (arXiv 2102.09672): the squared error of the
predicted noise, plus the variational bound for the learned variance with the mean held fixed, here
weighted by `vlb_weight` times their lambda.
Started again, a run continues from the checkpoint in its run_dir; every random number depends on
(seed, iteration) alone, so a resumed run repeats an uninterrupted one.
"""

import copy
import csv
import dataclasses
import math
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from data.dataloader import find_images
from guided_diffusion.gaussian_diffusion import GaussianDiffusion
from guided_diffusion.native import kernel
from guided_diffusion.precision import lacks
from guided_diffusion.unet import UNetConfig, UNetModel
from models.augmentation import Augmentation, label_embedding
from models.checkpoint import load_model, load_state, model_config, save_torch, save_weights
from models.muon import Muon, split_for_muon
from models.photo_store import PhotoStore, held_out_split
from models.train_config import TimestepBand, TrainConfig
from models.validation import (
    VALIDATION_TIMESTEPS,
    print_validation,
    validation_images,
    validation_loss,
)
from util.errors import UserError
from util.files import explained


def make_optimisers(
    config: TrainConfig, model: nn.Module, labels: nn.Module | None = None
) -> list[torch.optim.Optimizer]:
    """What updates the weights of the network and of the embedding of `labels`: AdamW, or Muon
    with AdamW for what is no hidden matrix."""
    hidden: list[Tensor] = []
    others: list[Tensor] = list(model.parameters())
    if config.optimiser == "muon":
        hidden, others = split_for_muon(model)
    others += labels.parameters() if labels is not None else []
    fused = others[0].device.type == "cuda"
    adamw = torch.optim.AdamW(
        others, lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=0.0, fused=fused
    )
    return [adamw, *([Muon(hidden, config.learning_rate)] if hidden else [])]


def draw_timesteps(bands: list[TimestepBand], count: int, generator: torch.Generator) -> Tensor:
    """`count` timesteps, int64 [count]: a band by its share, then uniformly within the band."""
    shares = torch.tensor([band.share for band in bands])
    picks = torch.multinomial(shares, count, replacement=True, generator=generator)
    low, high = torch.tensor([(band.low, band.high) for band in bands])[picks].unbind(1)
    return low + (torch.rand(count, generator=generator) * (high - low)).long()


def hybrid_loss(
    diffusion: GaussianDiffusion, output: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, eps: Tensor
) -> tuple[Tensor, Tensor]:
    """Noise error and variational bound (bits per dimension) of each image: two [B] tensors."""
    predicted_eps, values = output.chunk(2, dim=1)
    mse = (eps - predicted_eps).square().mean(dim=(1, 2, 3))
    step = diffusion.interpret(torch.cat([predicted_eps.detach(), values], 1), x_t, t)
    true_mean = diffusion.posterior_mean(x0, x_t, t)
    true_log_variance = diffusion.at("posterior_log_variance_clipped", t, x_t)
    kl = 0.5 * (
        step.log_variance
        - true_log_variance
        - 1
        + (true_log_variance - step.log_variance).exp()
        + (true_mean - step.mean).square() * (-step.log_variance).exp()
    )
    nll = _discretised_nll(x0, step.mean, step.log_variance)
    bound = torch.where((t == 0)[:, None, None, None], nll, kl)
    return mse, bound.mean(dim=(1, 2, 3)) / math.log(2)


def _discretised_nll(x0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Negative log-likelihood of 8-bit pixels under a Gaussian (Ho et al. 2020, eq. 13)."""
    half_bin = 1 / 255
    normal = torch.distributions.Normal(0.0, 1.0)
    inverse_std = (-0.5 * log_variance).exp()
    upper = normal.cdf((x0 - mean + half_bin) * inverse_std)
    lower = normal.cdf((x0 - mean - half_bin) * inverse_std)
    upper = torch.where(x0 > 0.999, torch.ones_like(upper), upper)
    lower = torch.where(x0 < -0.999, torch.zeros_like(lower), lower)
    return -(upper - lower).clamp(min=1e-12).log()


@dataclasses.dataclass
class Trainer:
    """Network, optimiser and averaged weights of a run, and what it takes to go on with it."""

    config: TrainConfig
    unet_config: UNetConfig
    device: torch.device

    def __post_init__(self) -> None:
        torch.manual_seed(self.config.seed)  # the network's initial weights
        self.diffusion = GaussianDiffusion.create()
        start = self.config.initial_weights
        model = load_model(self.unet_config, start) if start else UNetModel(self.unet_config)
        model = model.train().requires_grad_(True)
        # Without its kernel, a processor's group normalisation takes longer than the convolutions
        # gain in channels_last.
        native = self.device.type == "cpu" and not self.config.compile and kernel() is not None
        model.use_native(native)
        last = native or self.device.type != "cpu"
        self.layout = torch.channels_last if last else torch.contiguous_format
        self.model = model.to(self.device).to(memory_format=self.layout)
        self.ema = copy.deepcopy(self.model).requires_grad_(False).eval()
        self.augmentation = Augmentation(self.config.augmentation)
        self.labels = None
        if self.config.augmentation:
            self.labels = label_embedding(4 * self.unet_config.num_channels).to(self.device)
        self.optimisers = make_optimisers(self.config, self.model, self.labels)
        self.iteration = 0
        self.best: dict[str, Any] = {"score": math.inf, "weights": None}
        self.forward = torch.compile(self.model) if self.config.compile else self.model
        self.autocast = (
            torch.autocast(self.device.type, torch.bfloat16)
            if not lacks("bf16", self.device)
            else nullcontext()
        )
        self.path = Path(self.config.run_dir) / "checkpoint.pt"

    def resume(self) -> None:
        """Continue from the run's checkpoint if there is one."""
        if not self.path.exists():
            return
        saved = load_state(self.path)
        # Runs from before a key of the network had no other value than its default.
        defaults = {f.name: f.default for f in dataclasses.fields(UNetConfig)}
        if defaults | saved.get("unet", {}) != dataclasses.asdict(self.unet_config):
            raise UserError(
                f"{self.path}: checkpoint of another architecture; choose another run_dir or "
                "give back the model config it was started with"
            )
        other = self._other_beginning(saved)
        if other:
            raise UserError(f"{self.path}: this run {other}; choose another run_dir for a new one")
        self.model.load_state_dict(saved["model"])
        self.ema.load_state_dict(saved["ema"])
        for optimiser, state in zip(self.optimisers, saved["optimisers"], strict=True):
            optimiser.load_state_dict(state)
        if self.labels is not None:
            self.labels.load_state_dict(saved["labels"])
        self.best = saved.get("best", self.best)
        self.iteration = saved["iteration"]

    def _other_beginning(self, saved: dict[str, Any]) -> str:
        """How the run of a checkpoint began, where it was not as this one; "" else."""
        config, optimiser = self.config, saved.get("optimiser")
        if optimiser != config.optimiser:
            known = optimiser if isinstance(optimiser, str) else "of another version"
            return f"was started with optimiser {known}"
        begun_from = saved.get("initial_weights", config.initial_weights)
        if begun_from != config.initial_weights:
            now = config.initial_weights or "nothing"
            return f"began from {begun_from or 'nothing'}, not from {now}"
        if saved.get("holdout", config.holdout) != config.holdout:
            return f"was started with holdout {saved['holdout']}"
        if (saved.get("labels") is None) != (self.labels is None):
            return f"was started with{'out' * (self.labels is not None)} augmentation"
        return ""

    def save(self, score: float | None = None) -> None:
        """Write the checkpoint and, as output, the averaged weights: the last ones or, with a
        `score` (lower is better), those that scored best so far."""
        weights = self.ema.state_dict()
        if score is not None and score < self.best["score"]:
            self.best = {"score": score, "weights": {k: v.half() for k, v in weights.items()}}
        state = {
            "unet": dataclasses.asdict(self.unet_config),
            "initial_weights": self.config.initial_weights,
            "holdout": self.config.holdout,
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimiser": self.config.optimiser,
            "optimisers": [o.state_dict() for o in self.optimisers],
            "iteration": self.iteration,
            "labels": None if self.labels is None else self.labels.state_dict(),
            "best": self.best,
        }
        save_torch(state, self.path)
        chosen = weights if score is None else self.best["weights"] or weights
        save_weights(chosen, self.config.output, torch.float16)

    def learning_rate(self) -> float:
        """Linear warm-up, then half a cosine down to 2 % of the peak at the last iteration."""
        c = self.config
        warm = min(1.0, (self.iteration + 1) / max(1, c.warmup))
        done = min(1.0, self.iteration / c.iterations)
        return c.learning_rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))

    def step(self, store: PhotoStore) -> tuple[Tensor, int]:
        """One iteration; returns its noise error and the number of crops."""
        c = self.config
        seed = c.seed * 1_000_003 + self.iteration
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)  # of dropout
        shares = torch.tensor([crop.share for crop in c.crops])
        crop = c.crops[int(torch.multinomial(shares, 1, generator=generator))]
        x0 = store.crops(crop.batch_size, crop.size, generator)
        t = draw_timesteps(c.timesteps, len(x0), generator)
        eps = torch.randn(x0.shape, generator=generator)
        t, eps = t.to(self.device), eps.to(self.device)
        condition = None
        if self.labels is not None:
            x0, labels = self.augmentation(x0, generator)
            condition = self.labels(labels)
        x_t = self.diffusion.q_sample(x0, t, eps).contiguous(memory_format=self.layout)
        with self.autocast:
            output = self.forward(x_t, t, condition=condition)
        mse, bound = hybrid_loss(self.diffusion, output.float(), x0, x_t, t, eps)
        loss = (mse + c.vlb_weight * bound * self.diffusion.num_timesteps / 1000).mean()
        self._update(loss)
        return mse.detach().mean(), len(x0)

    def _update(self, loss: Tensor) -> None:
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = self.learning_rate()
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        trained = [p for o in self.optimisers for group in o.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(trained, self.config.grad_clip)
        if not torch.isfinite(norm):
            raise UserError(
                f"training diverged at iteration {self.iteration} (loss {loss.item()}); the last "
                f"good checkpoint is {self.path}; lower learning_rate and start again"
            )
        for optimiser in self.optimisers:
            optimiser.step()
        decay = min(self.config.ema_decay, (1 + self.iteration) / (10 + self.iteration))
        averaged = [p.detach() for p in self.ema.parameters()]
        current = [p.detach() for p in self.model.parameters()]
        torch._foreach_lerp_(averaged, current, 1 - decay)
        self.iteration += 1


def _check(config: TrainConfig, unet_config: UNetConfig) -> None:
    """UserError for settings that cannot be trained with."""
    unet_config.check()
    if not unet_config.learn_sigma:
        raise UserError(f"{config.model_config}: the hybrid loss needs learn_sigma: True")
    if unet_config.class_cond:
        raise UserError(f"{config.model_config}: class_cond: photographs here have no classes")
    config.check()


def _check_writable(path: Path) -> None:
    """UserError, before the training, where a file could not be written afterwards."""
    with explained(path, "written", "; choose another run_dir and output"):
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    if path.is_dir():
        raise UserError(f"{path}: is a folder; choose another run_dir and output")


def train(config: TrainConfig, device: torch.device) -> Trainer:
    """Run or continue the training that `config` describes; returns the finished trainer."""
    unet_config = model_config(config.model_config)
    _check(config, unet_config)
    for path in (Path(config.output), Path(config.run_dir) / "checkpoint.pt"):
        _check_writable(path)
    multiple = unet_config.size_multiple()
    for crop in config.crops:
        if crop.size % multiple:
            raise UserError(f"crops: size {crop.size} is not a multiple of {multiple}")
    if config.validation_root:
        find_images(config.validation_root)  # an empty folder is found now, not after the training
    largest = max(crop.size for crop in config.crops)
    paths, held_out = held_out_split(find_images(config.data_root), config.holdout)
    store = PhotoStore(paths, largest, device, config.min_side, config.small_share)
    trainer = Trainer(config, unet_config, device)
    trainer.resume()
    print(f"{store.count} photographs (half sizes included), starting at {trainer.iteration}")
    log_path = Path(config.run_dir) / "loss.csv"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    _trim_log(log_path, trainer.iteration)
    with log_path.open("a", newline="") as log:
        judges = list(validation_images(held_out, multiple, device))
        _run(trainer, store, judges, csv.writer(log), log)
    if not Path(config.output).exists():  # a finished run that is asked for another output
        trainer.save(math.inf if held_out else None)
    if config.validation_root:
        images = list(validation_images(find_images(config.validation_root), multiple, device))
        shipped = load_model(unet_config, config.output).to(device)
        print_validation(validation_loss(shipped, trainer.diffusion, images))
    return trainer


def _run(
    trainer: Trainer, store: PhotoStore, held_out: list[Tensor], writer: Any, log: Any
) -> None:
    """Train to the last iteration.

    held_out: images [3, H, W]; the weights with the lowest error on them, as the geometric mean
      over the timesteps, are kept; without any image the last ones
    """
    config = trainer.config
    if not log.tell():
        judged = [f"held_out_{t}" for t in VALIDATION_TIMESTEPS] if held_out else []
        writer.writerow(["iteration", "mse", "crops_per_s", *judged])
    losses, crops, since = [], 0, time.perf_counter()
    bar = tqdm(total=config.iterations, initial=trainer.iteration, unit="it", mininterval=5)
    while trainer.iteration < config.iterations:
        mse, count = trainer.step(store)
        losses.append(mse)
        crops += count
        bar.update()
        finished = trainer.iteration == config.iterations
        if trainer.iteration % config.checkpoint_every == 0 or finished:
            rate = crops / (time.perf_counter() - since)
            mean = torch.stack(losses).mean().item()
            errors = []
            if held_out:
                found = validation_loss(trainer.ema, trainer.diffusion, held_out)
                errors = list(found.values())
            columns = [f"{error:.6f}" for error in errors]
            writer.writerow([trainer.iteration, f"{mean:.6f}", f"{rate:.1f}", *columns])
            log.flush()
            trainer.save(math.exp(sum(map(math.log, errors)) / len(errors)) if errors else None)
            bar.set_postfix(loss=f"{mean:.4f}", images_per_s=f"{rate:.0f}")
            losses, crops, since = [], 0, time.perf_counter()
    bar.close()


def _trim_log(path: Path, iteration: int) -> None:
    """Drop log lines past the checkpoint: the resumed run writes them again."""
    if not path.exists():
        return
    lines = path.read_text().splitlines(keepends=True)
    kept = [line for i, line in enumerate(lines) if i == 0 or int(line.split(",")[0]) <= iteration]
    path.write_text("".join(kept))
