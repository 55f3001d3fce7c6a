"""The formulas against closed forms and against NumPy."""

import math

import numpy as np
import pytest
import reference
from keras import ops

from keras_layer_entropy import measures
from keras_layer_entropy.measures.entropy import log_pattern

PATTERNS = ("mean_then_softmax", "softmax_then_mean", "per_sample")
# float32 results in 0..1.
TOLERANCE = dict(rtol=0, atol=1e-6)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("units", [1, 2, 10, 512])
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_activation_entropy_equals_numpy(pattern, units, scale, random):
    a = (scale * random.normal(size=(3, 20, units))).astype("float32")
    want = [reference.activation_entropy(rows, pattern) for rows in a]
    found = ops.convert_to_numpy(measures.activation_entropy(a, pattern))
    # A float32 logit of 100 is known to 4e-6, which moves the entropy by as much.
    np.testing.assert_allclose(found, want, rtol=0, atol=1e-5)


def test_uniform_and_one_hot_patterns():
    for pattern in PATTERNS:
        uniform = measures.activation_entropy(np.zeros((4, 7)), pattern)
        np.testing.assert_allclose(uniform, 1.0, **TOLERANCE)
        one_hot = 1e3 * np.eye(10)[[2, 2]]
        np.testing.assert_allclose(measures.activation_entropy(one_hot, pattern), 0, atol=1e-12)


def test_one_hot_outputs_are_a_trap():
    """Softmax of a one-hot over 10: p = e/(e+9) once, 1/(e+9) nine times."""
    total = math.e + 9
    closed = math.log(total) - math.e / total
    found = float(measures.activation_entropy(np.eye(10, dtype="float32")[:1]))
    assert found == pytest.approx(closed / math.log(10), abs=1e-6)
    assert found == pytest.approx(0.968, abs=5e-4)


def test_two_level_pattern_has_its_closed_form():
    """k units at a and the rest at 0: H = ln(k e^a + n - k) - a k e^a / (k e^a + n - k)."""
    n, k, a = 20, 3, 2.5
    total = k * math.exp(a) + n - k
    closed = math.log(total) - a * k * math.exp(a) / total
    activations = np.where(np.arange(n) < k, a, 0.0)[None]
    found = float(measures.activation_entropy(activations, normalization="none"))
    assert found == pytest.approx(closed, abs=1e-6)


def test_larger_activations_have_lower_entropy(random):
    a = random.normal(size=(5, 16)).astype("float32")
    values = [float(measures.activation_entropy(s * a)) for s in (0.5, 1, 3, 9)]
    assert values == sorted(values, reverse=True)
    states = {float(measures.state_entropy(s * a)) for s in (0.5, 1, 3, 9)}
    assert len(states) == 1


def test_single_unit_is_a_two_way_choice():
    p = 0.8
    logit = np.array([[math.log(p / (1 - p))]])
    bits = -(p * math.log2(p) + (1 - p) * math.log2(1 - p))
    assert float(measures.activation_entropy(logit)) == pytest.approx(bits, abs=1e-6)


def test_readings_are_ordered(random):
    """Entropy is concave: pooling softmaxes never lowers it."""
    a = (4 * random.normal(size=(30, 9))).astype("float32")
    pooled, own = (float(measures.activation_entropy(a, p)) for p in PATTERNS[1:])
    assert pooled > own
    np.testing.assert_allclose(measures.instability(a), pooled - own, **TOLERANCE)
    np.testing.assert_allclose(measures.instability(np.repeat(a[:1], 5, 0)), 0, **TOLERANCE)


def test_instability_of_k_distinct_patterns_is_ln_k():
    for k in (2, 4, 8):
        a = 1e3 * np.eye(8)[np.arange(64) % k]
        found = float(measures.instability(a, normalization="none"))
        assert found == pytest.approx(math.log(k), abs=1e-6)


def test_state_entropy_equals_numpy(random):
    pre = random.normal(size=(2, 40, 6)).astype("float32")
    want = [reference.state_entropy(rows) for rows in pre]
    np.testing.assert_allclose(measures.state_entropy(pre), want, **TOLERANCE)
    assert float(measures.state_entropy(np.ones((4, 3)))) == 0
    assert float(measures.state_entropy(np.zeros((4, 3)))) == 0  # on means above 0


def test_binary_and_shannon_entropy():
    assert float(measures.binary_entropy(0.25)) == pytest.approx(0.8112781, abs=1e-6)
    p = np.array([[0.5, 0.25, 0.25, 0.0]])
    np.testing.assert_allclose(measures.shannon_entropy(p), [1.5 * math.log(2)], **TOLERANCE)
    np.testing.assert_allclose(
        measures.softmax_entropy(np.log([[0.5, 0.25, 0.25]])), [1.5 * math.log(2)], **TOLERANCE
    )


def test_half_precision_is_widened(random):
    a = random.normal(size=(50, 8)).astype("float16")
    found = measures.activation_entropy(a)
    assert "float32" in str(found.dtype)
    np.testing.assert_allclose(found, reference.activation_entropy(a), **TOLERANCE)


# What a float cannot hold is its smallest number (of float16 a subnormal one). Sums may be off by
# 1e-3, in half precision by some units in the last place.
@pytest.mark.parametrize(
    ("dtype", "smallest", "fitting", "other"),
    [
        ("float32", 2.0**-126, 1.0009, 1.0012),
        ("float16", 2.0**-24, 1.0 + 2.0**-8, 1.0 + 2.0**-7),
        ("bfloat16", 2.0**-126, 1.0 + 2.0**-5, 1.0 + 2.0**-4),
    ],
)
def test_logarithms_of_probabilities(dtype, smallest, fitting, other):
    rows = [[0.25, 0.75, 0.0], [0.0, fitting, 0.0], [0.0, other, 0.0], [2 - other, 0.0, 0.0]]
    log, fits = log_pattern(ops.cast(np.array([*rows, [1.5, -0.5, 0.0]]), dtype))
    assert ops.convert_to_numpy(fits)[:, 0].tolist() == [True, True, False, False, False]
    want = np.log([0.25, 0.75, smallest])
    np.testing.assert_allclose(log[0], want, rtol=1e-6)  # float32 logarithms


def test_activation_pattern_is_a_distribution(random):
    a = random.normal(size=(2, 50, 8))
    p = ops.convert_to_numpy(measures.activation_pattern(a))
    np.testing.assert_allclose(p, [reference.softmax(rows.mean(axis=0)) for rows in a], **TOLERANCE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(pattern="mean"), "Unknown pattern 'mean'; expected one of"),
        (dict(normalization="max"), "Unknown normalization 'max'"),
        (dict(normalization=lambda n: 0), "returned 0.0; a positive number was expected"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        measures.activation_entropy(np.zeros((2, 3)), **arguments)
    with pytest.raises(ValueError, match=r"shape \(3,\); expected \[..., samples, units\]"):
        measures.activation_entropy(np.zeros(3))


def test_bounds_are_reached():
    """Two samples that share no neuron: uniform on the mean, each certain, each neuron on once."""
    x = np.array([[50.0, -50.0], [-50.0, 50.0]])
    for name in ("activation_entropy", "instability", "state_entropy"):
        found = float(getattr(measures, name)(x))
        assert found == pytest.approx(measures.MEASURES[name]().largest, abs=1e-6), name
