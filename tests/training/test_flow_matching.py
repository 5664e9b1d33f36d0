"""Trajectories and predictions: the identities of the paper's section 2, and sampling with an exact field."""

import math

import numpy as np
import paddle
import pytest

from ppsd3.training.flow_matching import EDM, PREDICTIONS, Cosine, LDMLinear, Objective, RectifiedFlow, loss_weight
from ppsd3.training.timestep_sampling import CosMap, LogitNormal
from ppsd3.utils.errors import InputError

PATHS = [RectifiedFlow(), EDM(), EDM(0.6, 1.2), Cosine(), LDMLinear()]
each_path = pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)
OBJECTIVES = [
    Objective(path, prediction)
    for path in PATHS
    for prediction in PREDICTIONS
    if prediction != "F" or isinstance(path, EDM)
]
each_objective = pytest.mark.parametrize(
    "objective", OBJECTIVES, ids=lambda o: f"{type(o.trajectory).__name__}-{o.prediction}"
)
T = np.linspace(0.0105, 0.9895, 90)  # between the knots of LDM's thousand steps


@each_path
def test_derivatives_are_those_of_the_path(path):
    h = 1e-6
    for value, slope in (
        (path.alpha, path.alpha_prime),
        (path.sigma, path.sigma_prime),
        (path.log_snr, path.log_snr_prime),
    ):
        np.testing.assert_allclose((value(T + h) - value(T - h)) / (2 * h), slope(T), rtol=1e-6, atol=1e-8)
    assert (path.log_snr_prime(T) < 0).all()
    np.testing.assert_allclose(path.time(path.log_snr(T)), T, rtol=0, atol=1e-9)


def test_boundary_values():
    for path in (RectifiedFlow(), Cosine()):
        np.testing.assert_allclose(
            [path.alpha(0.0), path.sigma(0.0), path.alpha(1.0), path.sigma(1.0)], [1, 0, 0, 1], atol=1e-15
        )
    ldm = LDMLinear()
    assert (ldm.alpha(0.0), ldm.sigma(0.0)) == (1, 0)
    assert ldm.alpha(1.0) ** 2 == pytest.approx(0.00466009, rel=1e-5)  # Stable Diffusion's last alphas_cumprod
    assert EDM().alpha(0.3) == 1 and EDM(-1.2, 1.2).sigma(0.5) == pytest.approx(math.exp(-1.2))
    # beyond a trajectory's range, its nearest end
    assert ldm.time(-100.0) == 1 and ldm.time(math.inf) == 0 and RectifiedFlow().time(-math.inf) == 1
    assert 0 < EDM().time(math.inf) < EDM().time(-math.inf) < 1


def test_ldm_has_the_table_of_diffusers_at_its_indices():
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    table = np.cumprod(1 - betas)
    t = (np.arange(1000) + 1) / 1000
    np.testing.assert_allclose(LDMLinear().alpha(t) ** 2, table, rtol=1e-12)
    np.testing.assert_allclose(LDMLinear().timestep(t), np.arange(1000), atol=1e-9)


def field(path, x0, noise, t):
    """The paper's conditional field ``(alpha' / alpha) z - (sigma / 2) lambda' noise``."""
    z = path.alpha(t) * x0 + path.sigma(t) * noise
    return path.alpha_prime(t) / path.alpha(t) * z - path.sigma(t) / 2 * path.log_snr_prime(t) * noise


@each_path
def test_velocity_is_the_papers_conditional_field(path):
    rng = np.random.default_rng(0)
    x0, noise = rng.standard_normal([2, 90])
    by_hand = path.alpha_prime(T) * x0 + path.sigma_prime(T) * noise
    np.testing.assert_allclose(field(path, x0, noise, T), by_hand, rtol=1e-6, atol=1e-9)
    tensors = [paddle.to_tensor(x.astype("float32")[:, None]) for x in (x0, noise)]
    np.testing.assert_allclose(path.velocity(*tensors, T).numpy()[:, 0], by_hand, rtol=1e-5, atol=1e-5)


@each_objective
def test_predictions_convert_back(objective):
    rng = np.random.default_rng(1)
    x0, noise = (paddle.to_tensor(rng.standard_normal([90, 3, 2]).astype("float32")) for _ in range(2))
    path = objective.trajectory
    z = path.interpolate(x0, noise, T)
    found = objective.data_and_noise(objective.target(x0, noise, T), z, T)
    of_data, of_noise = objective.target_coefficients(T)
    size = np.maximum(1, (np.abs(path.alpha(T)) + path.sigma(T)) * (np.abs(of_data) + np.abs(of_noise)))
    determinant = np.abs(path.alpha(T) * of_noise - path.sigma(T) * of_data)
    for value, wanted in zip(found, (x0, noise)):
        error = np.abs((value - wanted).numpy()).max(axis=(1, 2)) * determinant / size
        assert error.max() < 2e-6  # float32, in units of the equations' size
    velocity = objective.velocity(objective.target(x0, noise, T), z, T)
    wanted = path.velocity(x0, noise, T)
    scale = (np.abs(path.alpha_prime(T)) + np.abs(path.sigma_prime(T))) * size / determinant
    assert (np.abs((velocity - wanted).numpy()).max(axis=(1, 2)) / scale).max() < 2e-6


@each_objective
def test_weighted_loss_equals_flow_matching_for_its_weight(objective):
    """With w = -1/2 lambda' sigma^2 it is L_CFM, whatever the network predicts; ``weight`` makes it a plain one."""
    rng = np.random.default_rng(2)
    x0, noise, wrong = rng.standard_normal([3, 90])
    path = objective.trajectory
    z = path.alpha(T) * x0 + path.sigma(T) * noise
    of_data, of_noise = objective.target_coefficients(T)
    error = wrong**2  # of the prediction
    determinant = path.alpha(T) * of_noise - path.sigma(T) * of_data
    noise_theta = noise + path.alpha(T) / determinant * wrong
    v_theta = path.alpha_prime(T) / path.alpha(T) * z - path.sigma(T) / 2 * path.log_snr_prime(T) * noise_theta
    flow_matching = (v_theta - field(path, x0, noise, T)) ** 2
    weight = -0.5 * path.log_snr_prime(T) * path.sigma(T) ** 2
    np.testing.assert_allclose(objective.weighted_loss_factor(T, weight) * error, flow_matching, rtol=1e-6)
    np.testing.assert_allclose(objective.weighted_loss_factor(T, objective.weight(T)), 1, rtol=1e-9)


def test_marginal_and_conditional_flow_matching_differ_by_a_constant():
    """FM regresses on the mean field given z; the losses of two networks differ by as much as their CFM losses do."""
    rng = np.random.default_rng(3)
    t = np.full(400_000, 0.6)
    x0 = rng.choice([-1.0, 1.0], t.size) * 0.8
    noise = rng.standard_normal(t.size)
    path = RectifiedFlow()
    z, target = path.alpha(t) * x0 + path.sigma(t) * noise, noise - x0
    mean_x0 = 0.8 * np.tanh(0.8 * path.alpha(t) * z / path.sigma(t) ** 2)
    mean_target = (z - path.alpha(t) * mean_x0) / path.sigma(t) - mean_x0
    networks = [lambda z: 0.3 * z, lambda z: np.sin(z) - 0.1]
    conditional, marginal = ([np.mean((v(z) - u) ** 2) for v in networks] for u in (target, mean_target))
    spread = 4 * 2 * np.std(target) / math.sqrt(t.size)
    assert conditional[0] - conditional[1] == pytest.approx(marginal[0] - marginal[1], abs=spread)
    assert conditional[0] - marginal[0] > 0.1


def proportional(found, paper):
    ratio = found / paper
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-9)


def test_weights_are_the_papers():
    np.testing.assert_allclose(Objective().weight(T), T / (1 - T), rtol=1e-9)
    snr = Cosine().log_snr(T)
    proportional(Objective(Cosine(), "epsilon").weight(T), 1 / np.cosh(snr / 2))
    proportional(Objective(Cosine(), "v_prediction").weight(T), np.exp(-snr / 2))
    edm = EDM(-1.2, 1.2)
    snr = edm.log_snr(T)
    normal = np.exp(-((snr - 2.4) ** 2) / (2 * 2.4**2))
    proportional(Objective(edm, "F").weight(T), normal * (np.exp(-snr) + 0.25))


def test_edm_target_is_the_preconditioned_output():
    edm = EDM()
    sigma, data_std = edm.sigma(T), 0.5
    skip, out = data_std**2 / (sigma**2 + data_std**2), sigma * data_std / np.hypot(sigma, data_std)
    rng = np.random.default_rng(0)
    x0, noise = rng.standard_normal([2, 90])
    of_data, of_noise = Objective(edm, "F").target_coefficients(T)
    np.testing.assert_allclose(
        of_data * x0 + of_noise * noise, (x0 - skip * (x0 + sigma * noise)) / out, rtol=1e-9, atol=1e-12
    )
    np.testing.assert_allclose(edm.input_scale(T), 1 / np.hypot(sigma, data_std))


@each_objective
def test_the_exact_field_of_a_mixture_carries_noise_to_its_moments(objective):
    """Euler's method on the field of a mixture of two Gaussians, through each prediction."""
    path, centres, std = objective.trajectory, np.array([-1.0, 0.5]), 0.2
    shares = np.array([0.3, 0.7])
    rng = np.random.default_rng(0)

    def exact_x0(z, t):
        alpha, variance = path.alpha(t), path.alpha(t) ** 2 * std**2 + path.sigma(t) ** 2
        logits = np.log(shares) - (z[:, None] - alpha * centres) ** 2 / (2 * variance)
        weights = np.exp(logits - logits.max(1, keepdims=True))
        weights /= weights.sum(1, keepdims=True)
        means = centres + alpha * std**2 / variance * (z[:, None] - alpha * centres)
        return (weights * means).sum(1)

    # equal steps in log-SNR; between its knots LDM's path is smooth too
    first, last = path.log_snr(1 - 1e-3), max(path.log_snr(1e-3), -9.0)
    times = path.time(np.linspace(max(first, -10.0), min(last, 12.0), 250))
    noise = rng.standard_normal(3000)
    z = path.alpha(times[0]) * 0.05 + path.sigma(times[0]) * noise
    z = z.astype(np.float64)
    for now, then in zip(times, times[1:]):
        x0 = exact_x0(z, now)
        eps = (z - path.alpha(now) * x0) / path.sigma(now)
        of_data, of_noise = objective.target_coefficients(now)
        tensors = [paddle.to_tensor(v.astype("float64")) for v in (of_data * x0 + of_noise * eps, z)]
        data, noise_ = (v.numpy() for v in objective.data_and_noise(*tensors, np.full(z.size, now)))
        z = path.alpha(then) * data + path.sigma(then) * noise_
    samples = exact_x0(z, times[-1])
    mean = (shares * centres).sum()
    variance = (shares * (centres**2 + std**2)).sum() - mean**2
    assert samples.mean() == pytest.approx(mean, abs=4 * math.sqrt(variance / z.size))
    assert samples.var() == pytest.approx(variance, rel=0.06)


def test_loss_weights():
    np.testing.assert_array_equal(loss_weight("none", T), np.ones_like(T))
    np.testing.assert_allclose(loss_weight("sigma_sqrt", T) * loss_weight("precondition", T), 1)
    np.testing.assert_allclose(loss_weight("cosmap", T), CosMap().density(T))
    np.testing.assert_allclose(loss_weight("cosmap*precondition", T), CosMap().density(T) * T**2)
    snr = ((1 - T) / T) ** 2
    np.testing.assert_allclose(loss_weight("min_snr", T, 5.0), np.minimum(snr, 5.0) * T**2)
    with pytest.raises(InputError, match=r"'sigma'.*'sigma_sqrt'"):
        loss_weight("sigma", T)
    with pytest.raises(InputError, match="snr_gamma is 0"):
        loss_weight("min_snr", T, 0)


def test_density_is_a_weight():
    """Times of a density, and uniform times weighed by it, are one loss (paper, section 3.1)."""
    law, rng = LogitNormal(), np.random.default_rng(0)
    loss = lambda t: np.sin(3 * t) ** 2 + t  # noqa: E731
    grid = (np.arange(200_000) + 0.5) / 200_000
    assert loss(law.sample(rng, 400_000)).mean() == pytest.approx((law.density(grid) * loss(grid)).mean(), abs=3e-3)


@pytest.mark.parametrize("arguments, named", [(("speed",), "speed"), (("F",), "belongs to EDM")])
def test_wrong_predictions(arguments, named):
    with pytest.raises(InputError, match=named):
        Objective(RectifiedFlow(), *arguments)
