"""The laws of training times: they are densities, they invert, and their samples follow them."""

import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import kstest

from ppsd3.schedulers.flow_sigmas import shift_sigmas, training_sigmas
from ppsd3.training.timestep_sampling import CosMap, Indexed, LogitNormal, Mode, Uniform, timestep_density
from ppsd3.utils.errors import InputError

LAWS = {
    "uniform": Uniform(),
    "logit-normal": LogitNormal(),
    "logit-normal of SD3's recipe": LogitNormal(0.6, 1.0),
    "narrow logit-normal": LogitNormal(-1.0, 0.3),
    "mode": Mode(1.29),
    "mode of the ends": Mode(-1.0),
    "flat mode": Mode(0.0),
    "steepest mode": Mode(1.75),
    "cosmap": CosMap(),
    "shifted uniform": Uniform().shifted(3.0),
    "shifted mode": Mode(1.29).shifted(3.0),
    "shifted back": CosMap().shifted(0.4),
}
each_law = pytest.mark.parametrize("law", LAWS.values(), ids=LAWS.keys())
INSIDE = np.concatenate([np.geomspace(1e-6, 0.5, 200), 1 - np.geomspace(1e-6, 0.5, 200)])


@each_law
def test_density_integrates_to_one(law):
    """Over t = sin^2(angle), where poles like those of the arcsine law at both ends are smooth.

    Of a symmetric law the half at 0 is integrated: near 1 the distance to a pole has fewer digits than the mass there.
    """
    t = np.linspace(0.01, 0.49, 30)
    symmetric = np.allclose(law.density(t), law.density(1 - t), rtol=1e-9)
    quantiles = law.icdf(np.array([1e-6, 1e-3, 0.1, 0.5, 0.9, 1 - 1e-3, 1 - 1e-6]))
    cuts = [0, *np.arcsin(np.sqrt(quantiles)), math.pi / 2]
    cuts = cuts[:5] if symmetric else cuts

    def at(angle):
        return float(law.density(math.sin(angle) ** 2)) * math.sin(2 * angle)

    parts = [quad(at, low, high, epsabs=1e-12, epsrel=1e-11, limit=500)[0] for low, high in zip(cuts, cuts[1:])]
    assert sum(parts) * (2 if symmetric else 1) == pytest.approx(1, abs=1e-9)


@each_law
def test_cdf_is_the_integral_and_inverts(law):
    u = np.linspace(0.001, 0.999, 401)
    t = law.icdf(u)
    assert (np.diff(t) > 0).all() and (0 < t).all() and (t < 1).all()
    np.testing.assert_allclose(law.cdf(t), u, rtol=0, atol=1e-9)
    inside = INSIDE[(law.density(INSIDE) > 1e-6)]  # elsewhere a double near 1 has not the digits of so small a tail
    np.testing.assert_allclose(law.icdf(law.cdf(inside)), inside, rtol=0, atol=1e-9)
    slope = (law.icdf(u + 1e-6) - law.icdf(u - 1e-6)) / 2e-6
    np.testing.assert_allclose(slope * law.density(t), 1, rtol=1e-4)


@each_law
@pytest.mark.parametrize("stratified", [False, True])
def test_samples_follow_the_law(law, stratified):
    t = law.sample(np.random.default_rng(0), 100_000, stratified)
    assert t.dtype == np.float64 and 0 < t.min() and t.max() < 1
    assert kstest(t, lambda x: law.cdf(np.asarray(x))).pvalue > 0.01


def test_stratified_times_fill_every_stratum_in_random_order():
    t = Uniform().sample(np.random.default_rng(0), 64, stratified=True)
    np.testing.assert_array_equal(np.sort((t * 64).astype(int)), np.arange(64))
    assert (np.diff(t) < 0).any()


def test_times_of_extreme_laws_stay_inside():
    for law in (LogitNormal(5, 5), LogitNormal(-5, 5), LogitNormal(40, 1), LogitNormal(-800, 1)):
        t = law.sample(np.random.default_rng(0), 10_000)
        assert 0 < t.min() and t.max() < 1
        assert np.isfinite(t / (1 - t)).all() and np.isfinite(1 / t).all()


def test_shifted_logit_normal_has_a_closed_form():
    assert LogitNormal(0.5, 1.2).shifted(3.0) == LogitNormal(0.5 + math.log(3), 1.2)
    u = np.linspace(0.01, 0.99, 99)
    by_hand = shift_sigmas(LogitNormal(0.5, 1.2).icdf(u), 3.0)
    np.testing.assert_allclose(LogitNormal(0.5, 1.2).shifted(3.0).icdf(u), by_hand, atol=1e-12)


def test_larger_mean_is_more_noise_and_diffusers_is_the_other_way():
    rng = np.random.default_rng
    assert LogitNormal(0.6).sample(rng(0), 4000).mean() > 0.55
    assert Indexed(LogitNormal(0.6)).sample(rng(0), 4000).mean() < 0.45


def test_indexed_times_are_entries_of_the_shifted_table():
    t = Indexed(Uniform(), shift=3.0).sample(np.random.default_rng(0), 20_000)
    table = training_sigmas(1000, 3.0).astype(np.float64)
    assert set(t) <= set(table) and len(set(t)) > 990
    u = np.clip(np.random.default_rng(0).random(20_000), 0, 1)
    np.testing.assert_array_equal(t, table[np.floor(1000 * u).astype(int)])


# Shares below 1/4 worked out by hand: Phi(-ln 3) = 0.136; f_mode(u) = 1/4 at u = 0.867; 2/pi atan(1/3) = 0.205.
@pytest.mark.parametrize(
    "name, below_quarter", [("uniform", 0.25), ("logit_normal", 0.136), ("mode", 0.133), ("cosmap", 0.205)]
)
def test_densities_by_name(name, below_quarter):
    assert timestep_density(name).cdf(0.25) == pytest.approx(below_quarter, abs=1e-3)
    assert timestep_density(name, shift=3.0).cdf(0.5) == pytest.approx(timestep_density(name).cdf(0.25), abs=1e-12)


@pytest.mark.parametrize(
    "arguments, named",
    [
        (dict(name="lognormal"), r"lognormal.*logit_normal"),
        (dict(name="mode", mode_scale=-2.0), "mode_scale is -2.0"),
        (dict(name="mode", mode_scale=1.76), "mode_scale is 1.76"),
        (dict(name="mode", mode_scale=math.nan), "`mode_scale` is nan"),
        (dict(name="logit_normal", logit_std=0.0), "logit_std is 0.0"),
        (dict(name="logit_normal", logit_std=-1.0), "logit_std is -1.0"),
        (dict(name="logit_normal", logit_mean=math.inf), "`logit_mean` is inf"),
        (dict(name="uniform", shift=0.0), "shift is 0.0"),
        (dict(name="uniform", shift=math.nan), "`shift` is nan"),
    ],
)
def test_parameters_outside_their_domain(arguments, named):
    with pytest.raises(InputError, match=named):
        timestep_density(**arguments)
