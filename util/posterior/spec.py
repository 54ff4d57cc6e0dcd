"""The config of a posterior check as typed objects."""

from dataclasses import dataclass, field, replace
from math import fsum
from pathlib import Path
from typing import Any

from data.masks import MaskConfig
from guided_diffusion.condition_methods import CONDITIONING, ConditioningMethod
from guided_diffusion.measurements import OPERATORS, LinearOperator, OperatorContext
from guided_diffusion.noise_models import LEAST_SIGMA
from util.config.overrides import apply_overrides
from util.config.run_config import build_part, parse_named, tuned
from util.config.schema import check_least, check_names, parse_component, parse_dataclass, read_yaml
from util.config.shipped import find_config
from util.errors import UserError
from util.posterior.exact import EXACT
from util.randomness import ImageKey
from util.registry import did_you_mean

BATCH = 256  # samples drawn together
TIMESTEPS = 1000
_MOST_BYTES = 4 << 30
_LEAST_SIZE = 8  # pixels
_TENSORS_OF_BATCH = 60  # candidates and gradients, in images of the batch


@dataclass(frozen=True)
class PriorSpec:
    """Natural images as a Gaussian, or as a mixture of Gaussians.

    weights: of the modes; their sum is 1
    distance: between neighbouring modes, which lie on a line in the direction that the measurement
      leaves most of: in standard deviations that the posterior of one mode has there
    operators: the names of those that it is checked with (None: all)
    steps: those of the check's that it is checked with (None: all)
    """

    name: str
    weights: list[float] = field(default_factory=lambda: [1.0])
    distance: float = 0.0
    operators: list[str] | None = None
    steps: list[int] | None = None


@dataclass(frozen=True)
class OperatorSpec:
    """A linear operator, as in a task config.

    params: conditioning.params with this operator by method; they come before those of a row
    steps: as those of a prior
    """

    name: str
    operator: dict[str, Any]
    mask_opt: MaskConfig | None = None
    params: dict[str, dict[str, Any]] = field(default_factory=dict)
    steps: list[int] | None = None

    def build(self, context: OperatorContext) -> LinearOperator:
        """The operator, bound to one image; UserError for one that is not linear."""
        component = parse_named(OPERATORS, self.operator, f'operator "{self.name}"')
        context = replace(context, mask=self.mask_opt, build_part=build_part)
        operator = component.build(OPERATORS, context=context)
        if not isinstance(operator, LinearOperator):
            raise UserError(
                f'operator "{self.name}": {operator.title} is not linear, and no posterior is '
                "known for it"
            )
        bound: Any = operator.bind([ImageKey(context.seed, self.name)])
        return bound


@dataclass(frozen=True)
class RowSpec:
    """A conditioning method with parameters, or one of util.posterior.exact.

    from_measurement: the steps begin where the measurement lets them, with guidance that needs no
      scale, as with `--steps`; else they are those of timestep_respacing
    steps: as those of a prior
    """

    name: str
    method: str
    params: dict[str, Any] = field(default_factory=dict)
    from_measurement: bool = False
    steps: list[int] | None = None


@dataclass(frozen=True)
class CheckSpec:
    """A posterior check.

    sigma: of the Gaussian noise, on the range [-1, 1]
    size: side of the images in pixels
    runs: measurements of each prior and operator, from an image of the prior each; intervals are
      over them
    samples: drawn for each measurement
    steps: numbers of sampling steps
    scale_by_steps: guidance scales are multiplied by 1000 / steps
    note: what a reader has to know, Markdown
    """

    title: str
    priors: list[PriorSpec]
    operators: list[OperatorSpec]
    rows: list[RowSpec]
    sigma: float = 0.05
    size: int = 16
    runs: int = 4
    samples: int = 200
    steps: list[int] = field(default_factory=lambda: [100])
    scale_by_steps: bool = False
    seed: int = 0
    note: str = ""

    def operators_of(self, prior: PriorSpec) -> list[OperatorSpec]:
        return [o for o in self.operators if prior.operators is None or o.name in prior.operators]

    def steps_of(self, prior: PriorSpec, operator: OperatorSpec, row: RowSpec) -> list[int]:
        limits = [part.steps for part in (prior, operator, row) if part.steps is not None]
        return [n for n in self.steps if all(n in limit for limit in limits)]

    @property
    def count(self) -> int:
        """Of cells."""
        return sum(
            len(self.steps_of(prior, operator, row))
            for prior in self.priors
            for operator in self.operators_of(prior)
            for row in self.rows
        )

    def context(self, **options: Any) -> OperatorContext:
        return OperatorContext(self.size, self.size, seed=self.seed, **options)


def load_spec(path: str | Path, overrides: list[str] | None = None) -> CheckSpec:
    """The check in a YAML file, changed by `overrides` "KEY=VALUE"; UserError naming what is wrong
    with it."""
    path = find_config(path, "posterior check")
    raw = read_yaml(path)
    apply_overrides(raw, overrides or [])
    spec = parse_dataclass(CheckSpec, raw, str(path))
    check_spec(spec, str(path))
    return spec


def check_spec(spec: CheckSpec, where: str) -> None:
    """UserError for a check that cannot be made."""
    check_names(spec.priors, f"{where}: priors")
    check_names(spec.operators, f"{where}: operators")
    check_names(spec.rows, f"{where}: rows")
    check_least(spec, where, size=_LEAST_SIZE, runs=2, samples=2, sigma=LEAST_SIGMA)
    _check_memory(spec, where)
    known = [operator.name for operator in spec.operators]
    for prior in spec.priors:
        _check_prior(prior, known, f'{where}: prior "{prior.name}"')
    for operator in spec.operators:
        try:
            operator.build(spec.context())
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    if not spec.steps or any(not 1 <= n <= TIMESTEPS for n in spec.steps):
        raise UserError(f"{where}: steps: expected numbers from 1 to {TIMESTEPS}, got {spec.steps}")
    if spec.count == 0:
        raise UserError(f"{where}: steps {spec.steps}: no row, prior and operator has any of them")
    for row in spec.rows:
        at = f'{where}: row "{row.name}"'
        known = [*EXACT, *CONDITIONING.names()]
        if row.method not in known:
            hint = did_you_mean(row.method, known)
            raise UserError(f'{at}: unknown conditioning method "{row.method}"{hint}')
        for operator in spec.operators:
            build_method(spec, row, operator, 1, at)


def _check_prior(prior: PriorSpec, operators: list[str], at: str) -> None:
    total = fsum(prior.weights)
    if not prior.weights or min(prior.weights) <= 0 or abs(total - 1) > 1e-6:
        raise UserError(
            f"{at}: weights must be positive and sum to 1, got {prior.weights}, which sum to "
            f"{total:g}"
        )
    if (len(prior.weights) > 1) != (prior.distance > 0):
        raise UserError(
            f"{at}: distance must be positive where there are several weights, and is left out "
            "where there is one"
        )
    for name in prior.operators or []:
        if name not in operators:
            raise UserError(f'{at}: unknown operator "{name}"{did_you_mean(name, operators)}')


def _check_memory(spec: CheckSpec, where: str) -> None:
    d = 3 * spec.size**2
    matrices = 5 * 8 * d**2  # a decomposition of d x d, in float64
    kept = 2 * 8 * spec.samples * d + 4 * _TENSORS_OF_BATCH * min(spec.samples, BATCH) * d
    if matrices + kept > _MOST_BYTES:
        raise UserError(
            f"{where}: {spec.samples:,} samples of {spec.size}x{spec.size} need about "
            f"{(matrices + kept) / 2**30:.1f} GiB, and this check takes at most "
            f"{_MOST_BYTES >> 30}; choose fewer samples (with more runs) or a smaller size"
        )


def build_method(
    spec: CheckSpec, row: RowSpec, operator: OperatorSpec, steps: int, at: str
) -> ConditioningMethod | None:
    """The row's method for so many steps; None for an exact one, which knows the measurement."""
    if row.method in EXACT:
        if row.params:
            raise UserError(f"{at}: {row.method} has no params")
        return None
    params = {**operator.params.get(row.method, {}), **row.params}
    if row.from_measurement:
        params = tuned(row.method, params)
    component = parse_component(CONDITIONING, row.method, params, f"{at}: params")
    if spec.scale_by_steps and "scale" in CONDITIONING.keys(row.method):
        settings = component.settings(CONDITIONING)
        component.params["scale"] = settings["scale"] * TIMESTEPS / steps
    try:
        return component.build(CONDITIONING)
    except UserError as error:
        raise UserError(f"{at}: {error}") from None
