"""The ruler itself, its closed forms, and the command line."""

import json

import pytest
import torch
import yaml
from PIL import Image

from guided_diffusion import natural_images
from guided_diffusion.condition_methods import CONDITIONING, ConditioningMethod, StepResult
from guided_diffusion.gaussian_diffusion import GaussianDiffusion
from guided_diffusion.measurements import OPERATORS, OperatorContext
from guided_diffusion.natural_images import NaturalImages
from util.check_posterior import main
from util.errors import UserError
from util.posterior.measure import CheckResult, figures, run_check
from util.posterior.mixture import ExactDenoiser, ModePosterior, Posterior
from util.posterior.spec import load_spec

SIZE, SIGMA = 8, 0.05
D = 3 * SIZE**2
CONTEXT = OperatorContext(SIZE, SIZE, dtype=torch.float64)
WEIGHTS = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
CHECK = {
    "title": "A small check",
    "priors": [
        {"name": "Gaussian"},
        {"name": "modes", "weights": [0.7, 0.3], "distance": 4.0, "operators": ["SR"]},
    ],
    "operators": [
        {"name": "SR", "operator": {"name": "super_resolution", "scale_factor": 2}},
        {"name": "motion", "operator": {"name": "motion_blur", "kernel_size": 5}},
    ],
    "rows": [
        {"name": "exact", "method": "exact"},
        {"name": "rule", "method": "dpps", "params": {"candidates": 1}, "from_measurement": True},
        {"name": "DDNM+", "method": "ddnm+"},
    ],
    "size": SIZE,
    "runs": 2,
    "samples": 20,
    "steps": [3],
}


@pytest.fixture(autouse=True)
def few_pixels(monkeypatch):
    """The start is found on a few images of this size, not on a thousand."""
    monkeypatch.setattr(natural_images, "_PIXELS", 2**10)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def as_matrix(operator) -> torch.Tensor:
    unit = torch.eye(D, dtype=torch.float64).view(D, 3, SIZE, SIZE)
    return operator(unit).flatten(1).T


def prior_covariance() -> torch.Tensor:
    images = NaturalImages((3, SIZE, SIZE), torch.empty(0, dtype=torch.float64))
    unit = torch.eye(D, dtype=torch.float64).view(D, 3, SIZE, SIZE)
    basis = images.image(unit).flatten(1)
    return basis.T @ (images.variances.flatten()[:, None] * basis)


@pytest.fixture
def mode() -> ModePosterior:
    return ModePosterior(OPERATORS.get("super_resolution")(2, context=CONTEXT), SIGMA)


def test_the_posterior_is_that_of_bayes_rule(mode):
    """Against dense matrices: the gain form of mean and covariance, evidences as densities."""
    A, V = as_matrix(OPERATORS.get("super_resolution")(2, context=CONTEXT)), prior_covariance()
    means = 0.1 * drawn(3, 3, SIZE, SIZE)
    y = drawn(1, 3, SIZE // 2, SIZE // 2, seed=1)
    known = mode.given(y, WEIGHTS, means)
    marginal = A @ V @ A.T + SIGMA**2 * torch.eye(len(A), dtype=torch.float64)
    gain = torch.linalg.solve(marginal, A @ V).T
    covariance = V - gain @ A @ V
    found = known.directions @ torch.diag(known.variances) @ known.directions.T
    torch.testing.assert_close(found, covariance, rtol=0, atol=1e-9)
    flat = means.flatten(1)
    expected = flat + (y.flatten() - flat @ A.T) @ gain.T
    torch.testing.assert_close(known.image(known.centres).flatten(1), expected)
    evidence = torch.stack(
        [
            torch.distributions.MultivariateNormal(A @ m, marginal).log_prob(y.flatten())
            for m in flat
        ]
    )
    torch.testing.assert_close(known.weights, (WEIGHTS.log() + evidence).softmax(0))


def test_moments_of_the_mixture_are_those_of_its_samples(mode):
    means = mode.prior_means(3, 5.0)
    y = OPERATORS.get("super_resolution")(2, context=CONTEXT)(means[1:2])
    known = mode.given(y, WEIGHTS, means)
    assert 0.05 < known.weights.min() < known.weights.max() < 0.95
    samples = known.draw(40_000, torch.Generator().manual_seed(0))
    error = (samples.mean(0) - known.mean) / known.spread.sqrt()
    assert error.abs().max() < 5 / 200
    assert ((samples.var(0) / known.spread - 1).abs() < 0.06).all()
    assert known.spread[0] > 2 * known.variances[0]  # the modes lie apart
    torch.testing.assert_close(known.shares(samples).mean(0), known.weights, rtol=0, atol=0.01)
    torch.testing.assert_close(known.coordinates(known.image(samples[:5])), samples[:5])


def test_modes_lie_where_the_measurement_says_least(mode):
    means = mode.prior_means(2, 3.0).flatten(1)
    apart = means[1] - means[0]
    assert apart.norm().item() == pytest.approx(3 * mode.variances[0].sqrt().item())
    torch.testing.assert_close(means.sum(0), torch.zeros(D, dtype=torch.float64))
    assert (mode.variances.diff() <= 0).all()


def test_the_denoiser_is_the_score(mode):
    """eps = -sqrt(1 - acp) times the gradient of log p(x_t), the density written out."""
    diffusion = GaussianDiffusion.create()
    means = 0.3 * drawn(3, 3, SIZE, SIZE, seed=2)
    model = ExactDenoiser(WEIGHTS, means, diffusion)
    acp = diffusion.alphas_cumprod[300]
    cov = acp * prior_covariance() + (1 - acp) * torch.eye(D, dtype=torch.float64)
    modes = torch.distributions.MultivariateNormal(acp**0.5 * means.flatten(1), cov)
    choice = torch.distributions.Categorical(WEIGHTS)
    mixture = torch.distributions.MixtureSameFamily(choice, modes)
    x = drawn(2, 3, SIZE, SIZE, seed=3).requires_grad_()
    score = torch.autograd.grad(mixture.log_prob(x.flatten(1)).sum(), x)[0]
    eps = model(x, torch.tensor([300, 300]))
    torch.testing.assert_close(eps, -((1 - acp) ** 0.5) * score)
    single = model(x[1:], torch.tensor([300]))
    torch.testing.assert_close(eps[1:], single)


def test_the_denoiser_knows_noise_levels_between_timesteps():
    """What `denoise` makes of any level is the posterior mean of that level."""
    diffusion = GaussianDiffusion.create(clip_denoised=False)
    one = torch.ones(1, dtype=torch.float64)
    model = ExactDenoiser(one, torch.zeros(1, 3, SIZE, SIZE, dtype=torch.float64), diffusion)
    x, sigma = drawn(1, 3, SIZE, SIZE), 0.3217
    V = prior_covariance()
    expected = torch.linalg.solve(V + sigma**2 * torch.eye(D, dtype=torch.float64), V @ x.flatten())
    found = diffusion.denoise(model, x, sigma)
    # The timestep is told in float32.
    torch.testing.assert_close(found.flatten(), expected, rtol=1e-4, atol=1e-5)


def write(tmp_path, **changes):
    path = tmp_path / "check.yaml"
    path.write_text(yaml.safe_dump({**CHECK, **changes}))
    return path


@pytest.mark.parametrize("prior", [{}, {"weights": [0.7, 0.3], "distance": 4.0}])
def test_exact_sampling_through_the_sampler_is_exact(tmp_path, prior):
    rows = [{"name": "exact", "method": "exact"}]
    priors = [{"name": "known", **prior}]
    check = {"rows": rows, "priors": priors, "operators": CHECK["operators"][:1]}
    result = CheckResult(load_spec(write(tmp_path, **check, runs=4, samples=400, steps=[10])))
    run_check(result)
    ((floor, cell),) = [case.cells for case in result.cases]
    for found in (floor, cell):
        assert abs(found.mean(lambda f: f.bias)[0]) < 0.01
        for i in range(3):
            assert found.mean(lambda f, i=i: f.spread[i])[0] == pytest.approx(1, abs=0.04)
        assert found.mean(lambda f: f.shift)[0] < 0.05
    distances = [c.mean(lambda f: f.distance)[0] for c in (floor, cell)]
    assert distances[1] == pytest.approx(distances[0], rel=0.3)


def test_the_exact_score_shows_what_the_steps_cost(tmp_path):
    """Its mean is right with any number of steps; its spread comes near with many."""
    rows = [{"name": "score", "method": "exact_score"}]
    check = {"rows": rows, "priors": [{"name": "Gaussian"}], "operators": CHECK["operators"][:1]}
    result = CheckResult(load_spec(write(tmp_path, **check, samples=100, steps=[10, 200])))
    run_check(result)
    _, few, many = result.cases[0].cells
    for cell in (few, many):
        assert abs(cell.mean(lambda f: f.bias)[0]) < 0.02
    middle = [cell.mean(lambda f: f.spread[1])[0] for cell in (few, many)]
    assert middle[0] < 0.6
    assert 0.7 < middle[1] < 1.05


def test_figures_see_what_is_wrong():
    """Samples that are shifted, too narrow, or all in one mode, by known amounts."""
    generator = torch.Generator().manual_seed(0)
    variances = torch.linspace(2, 0.5, D, dtype=torch.float64)
    centres = torch.zeros(2, D, dtype=torch.float64)
    centres[1, 0] = 50
    weights = torch.tensor([0.75, 0.25], dtype=torch.float64)
    unit = torch.eye(D, dtype=torch.float64)
    both = Posterior(weights, centres, variances, unit, (3, SIZE, SIZE))
    one = Posterior(torch.ones(1).double(), centres[:1], variances, unit, (3, SIZE, SIZE))
    slices = unit[:, :20]
    exact = one.draw(4000, generator)
    shifted = figures(exact + 0.3, exact, one, slices)
    assert shifted.bias == pytest.approx(0.09 * D / variances.sum().item(), rel=0.1)
    assert shifted.distance == pytest.approx(0.3 / variances.mean().sqrt().item())
    narrow = figures(exact * 0.5, exact, one, slices)
    assert narrow.spread == pytest.approx((0.5, 0.5, 0.5), rel=0.03)
    assert abs(narrow.bias) < 0.01
    assert figures(exact, both.draw(4000, generator), both, slices).shift == pytest.approx(0.25)


def test_command_line(tmp_path, capsys):
    out = tmp_path / "out"
    assert main([str(write(tmp_path)), "--out", str(out), "--set", "note=Found."]) == 0
    page = (out / "posterior.md").read_text()
    head, _, rest = page.partition(" writes what follows, and keeps what stands above -->\n")
    assert head == "# A small check\n\n<!-- util.check_posterior"
    assert rest.startswith("\nFound.\n\n    python -m util.check_posterior ")
    assert "## modes, SR" in page
    assert "| DDNM+ | 3 | - [1] |" in page  # motion blur: a dash is no failure
    kept = json.loads((out / "posterior.json").read_text())
    by_cell = {(c["prior"], c["operator"], c["row"]): c for c in kept["cells"]}
    assert len(by_cell) == 3 * 4
    assert "singular values" in by_cell["Gaussian", "motion", "DDNM+"]["problem"]
    figures_ = by_cell["modes", "SR", "rule"]["measurements"]
    assert len(figures_) == 2
    assert sum(figures_[0]["shares"]) == pytest.approx(1, abs=1e-4)
    with Image.open(out / "posterior.png") as picture:
        assert picture.width > 3 * 100
        assert len(picture.getcolors(1 << 20)) > 10
    assert main([str(write(tmp_path)), "--out", str(tmp_path / "again")]) == 0
    again = json.loads((tmp_path / "again" / "posterior.json").read_text())
    assert [c["measurements"] for c in again["cells"]] == [c["measurements"] for c in kept["cells"]]


def test_any_registered_method_can_be_a_row(tmp_path, monkeypatch):
    monkeypatch.setattr(CONDITIONING, "_entries", dict(CONDITIONING._entries))

    @CONDITIONING.register("denoised")
    class Denoised(ConditioningMethod):
        """Asks for a noise level of its own."""

        def __init__(self, sigma: float = 0.3) -> None:
            super().__init__()
            self.sigma = sigma

        def step(self, reverse, x_t, t, problem, noise):
            x = reverse.denoise(x_t, self.sigma)
            return StepResult(x, x, problem.distance(x))

    rows = [{"name": "mine", "method": "denoised", "params": {"sigma": 0.2}}]
    result = CheckResult(load_spec(write(tmp_path, rows=rows, priors=[{"name": "Gaussian"}])))
    run_check(result)
    assert not result.failed
    assert len(result.cases) == 2


def test_a_method_that_fails_leaves_a_dash(tmp_path, monkeypatch):
    monkeypatch.setattr(CONDITIONING, "_entries", dict(CONDITIONING._entries))

    @CONDITIONING.register("broken")
    class Broken(ConditioningMethod):
        def __init__(self) -> None:
            super().__init__()

        def step(self, reverse, x_t, t, problem, noise):
            raise RuntimeError("no such thing\nand more")

    rows = [{"name": "broken", "method": "broken"}, CHECK["rows"][0]]
    result = CheckResult(load_spec(write(tmp_path, rows=rows)))
    run_check(result)
    assert result.failed
    assert result.cases[0].cells[1].problem == "RuntimeError: no such thing"
    assert result.cases[0].cells[2].runs


def test_an_interruption_loses_nothing(tmp_path, monkeypatch):
    def interrupt(case, cell):
        raise KeyboardInterrupt

    monkeypatch.setattr("util.posterior.measure._tell", interrupt)
    out = tmp_path / "out"
    assert main([str(write(tmp_path)), "--out", str(out)]) == 130
    assert "| exact | 3 |" in (out / "posterior.md").read_text()


def test_what_diverges_is_a_failure(tmp_path):
    rows = [{"name": "far", "method": "ps", "params": {"scale": 1e30}}]
    assert main([str(write(tmp_path, rows=rows)), "--out", str(tmp_path / "out")]) == 1
    assert "[1] the samples are not finite" in (tmp_path / "out" / "posterior.md").read_text()


def modes(**changes):
    return {"priors": [{"name": "m", "weights": [0.5, 0.5], "distance": 3.0, **changes}]}


def row(**changes):
    return {"rows": [{"name": "r", "method": "dpps", **changes}]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (modes(weights=[0.5, 0.4]), 'prior "m": weights must be positive and sum to 1'),
        (modes(weights=[1.5, -0.5]), "weights must be positive"),
        (modes(distance=0.0), "distance must be positive"),
        (modes(operators=["blur"]), 'unknown operator "blur"'),
        ({"samples": 10**8}, "100,000,000 samples of 8x8 need about"),
        ({"size": 128}, "this check takes at most 4"),
        ({"size": 4}, "size must be at least 8"),
        ({"sigma": 0.0}, "sigma must be at least 0.001"),
        ({"runs": 1}, "runs must be at least 2"),
        ({"steps": [0]}, "expected numbers from 1 to 1000"),
        (row(steps=[7]), r"steps \[3\]: no row, prior and operator has any"),
        (row(method="dpp"), 'unknown conditioning method "dpp".*did you mean "dpps"'),
        (row(params={"candidates": 0}), 'row "r": dpps: n_max and candidates'),
        (row(params={"scal": 1.0}), 'unknown key "scal"'),
        (row(method="exact", params={"scale": 1.0}), "exact has no params"),
        ({"operators": [{"name": "p", "operator": {"name": "phase_retrieval"}}]}, "not linear"),
        ({"operators": [{"name": "i", "operator": {"name": "inpainting"}}]}, "mask_opt"),
        ({"operators": [{"name": "x", "operator": {"name": "blurr"}}]}, "unknown operator"),
        ({"sizes": 3}, 'unknown key "sizes"'),
    ],
)
def test_bad_input(tmp_path, changes, message):
    path = write(tmp_path, **{"priors": [{"name": "Gaussian"}], **changes})
    with pytest.raises(UserError, match=message) as error:
        load_spec(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_that_cannot_be_written_is_missed_at_once(tmp_path, capsys):
    (tmp_path / "out").write_text("")
    assert main([str(write(tmp_path)), "--out", str(tmp_path / "out")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_the_check_that_ships():
    spec = load_spec("posterior")
    assert spec.sigma == 0.05
    assert {row.method for row in spec.rows} >= {"exact", "dpps", "ps", "pigdm", "diffpir", "ddnm+"}
