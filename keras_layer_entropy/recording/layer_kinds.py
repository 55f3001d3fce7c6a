"""What belongs to the layer before it: known of Keras's own layers, else found by computing."""

import concurrent.futures
import dataclasses
import functools
import itertools

import keras
import numpy as np
from keras import ops

_KINDS = {
    "activations": "activation",
    "normalization": "normalization",
    "regularization": "dropout",
}
_LIBRARIES = ("keras", "tensorflow", "jax", "torch")
_SOFTMAX = {"softmax", "softmax_v2", "log_softmax", "log_softmax_v2", "Softmax", "LogSoftmax"}
_SIGMOID = {"sigmoid", "log_sigmoid", "logistic", "expit", "Sigmoid", "LogSigmoid"}
_SPARSEMAX = {"sparsemax", "Sparsemax"}


def kind(operation):
    """`"activation"`, `"normalization"`, `"dropout"`, or None: as Keras sorts its own.

    Args:
        operation: a layer, or an operation of a functional model.

    Example:

    >>> kind(keras.layers.ReLU()), kind(keras.layers.Flatten()), kind(keras.layers.Dense(3))
    ('activation', None, None)
    """
    if isinstance(operation, keras.layers.Wrapper):  # SpectralNormalization is no normalization
        return None
    for cls in type(operation).__mro__:
        home = cls.__module__.split(".")
        if home[:3] == ["keras", "src", "layers"] and home[3] in _KINDS:
            return _KINDS[home[3]]
        if home[:2] == ["keras", "src"] and not issubclass(cls, keras.Layer):
            return "activation" if cls.__name__.lower() in _activation_names() else None
    return None


@functools.cache
def _activation_names():
    """The operations behind the functions of `keras.activations` are called like these."""
    return {name.replace("_", "") for name in dir(keras.activations)}


def is_linear(layer):
    """Whether the layer is an activation that does nothing, or has one."""
    return getattr(layer, "activation", None) is keras.activations.linear


def name_of(function):
    """The name of a function, or of the class of a layer or operation that is one."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)


def family(function):
    """What a function of a library is known to give.

    Args:
        function: an activation function, or a layer or operation that applies one.

    Returns:
        `("softmax", axes)`, `("sigmoid", None)`, `("other", None)` for any other function of a
        library, and `("unknown", None)`.

    Example:

    >>> family(keras.layers.Softmax(axis=1)), family(lambda x: keras.ops.softmax(x))
    (('softmax', (1,)), ('unknown', None))
    """
    axis = getattr(function, "axis", -1)
    while isinstance(function, functools.partial):
        axis = function.keywords.get("axis", axis)
        function = function.func
    name, home = name_of(function), getattr(function, "__module__", None) or ""
    if home.partition(".")[0] not in _LIBRARIES or name in _SPARSEMAX or name == "Lambda":
        return "unknown", None
    if name in _SOFTMAX:
        return "softmax", tuple(axis) if isinstance(axis, list | tuple) else (axis,)
    return ("sigmoid" if name in _SIGMOID else "other"), None


@dataclasses.dataclass(frozen=True)
class Effect:
    """What a function of tensors does.

    Attributes:
        kind: `"moves"` (every value comes out once, as it was), `"affine"` (a x + b with numbers a
            and b), `"element-wise"`, or `"distribution"` (rows of the last axis, or what they are
            the logarithm of, add up to 1); or one of `kind`.
        shape: of what a move makes of the example.
        axes: of a move that is a transposition; else a move keeps the order of the values.
        family: `"softmax"` or `"sigmoid"` where it computes just that.
    """

    kind: str
    shape: tuple | None = None
    axes: tuple | None = None
    family: str = "unknown"

    @property
    def begins(self):
        """Whether an activation function does this."""
        return self.kind in ("activation", "element-wise", "distribution")

    @property
    def extends(self):
        """Whether more of this, after an activation function, is a part of it."""
        return self.kind in ("affine", "element-wise")


def example(shape):
    """A small shape for one of which some sizes are not known."""
    return (2, *(3 if size is None else size for size in shape[1:]))


def effect(function, shapes, dtypes):
    """What a function does, found by computing it on a few numbers; None for anything else.

    Args:
        function: takes tensors, gives a tensor; it must not depend on anything else.
        shapes: the shape of each tensor, None where a size is not known.
        dtypes: likewise.

    Example:

    >>> effect(ops.square, [(None, 4)], ["float32"]).kind
    'element-wise'
    >>> effect(lambda x: ops.transpose(x, (0, 2, 1)), [(None, 4, 3)], ["float32"])
    Effect(kind='moves', shape=(2, 3, 4), axes=(0, 2, 1), family='unknown')
    >>> effect(lambda x: ops.mean(x, axis=-1), [(None, 4, 3)], ["float32"]) is None
    True
    """
    random = np.random.default_rng(0)
    given = [_numbers(random, example(shape)) for shape in shapes]
    given = [x > 0 if dtype == "bool" else x for x, dtype in zip(given, dtypes, strict=True)]
    # Another thread is not inside of any graph, transformation or scope of Keras.
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        return thread.submit(_effect, function, given, random).result()


def _effect(function, given, random):
    try:
        result, tolerance = _compute(function, given)
        if len(given) == 1 and (move := _move(given[0], result)):
            return move
        if any(x.shape != result.shape for x in given):
            return Effect("activation") if _is_gated(given[0], result, tolerance) else None
        order = random.permutation(result.size)
        mixed, _ = _compute(function, [x.ravel()[order].reshape(x.shape) for x in given])
    except Exception:  # noqa: BLE001 - the user's code may raise anything
        return None
    close = functools.partial(np.allclose, rtol=tolerance, atol=tolerance, equal_nan=True)
    if close(mixed.ravel(), result.ravel()[order]):
        return _elementwise(given[0], result, close) if len(given) == 1 else Effect("element-wise")
    if len(given) > 1:
        return None
    softmax = np.exp(given[0] - given[0].max(axis=-1, keepdims=True))
    softmax = softmax / softmax.sum(axis=-1, keepdims=True)
    for p in (result, np.exp(np.minimum(result, 1.0))):  # or a logarithm
        if (p >= 0).all() and close(p.sum(axis=-1), 1.0):
            return Effect("distribution", family="softmax" if close(p, softmax) else "unknown")
    return None


def _numbers(random, shape):
    """Numbers of both signs, 1/64 to 64, which the smallest floats hold exactly."""
    size = random.integers(128, 256, shape) * 2.0 ** random.integers(-13, -1, shape)
    return (size * random.choice([-1, 1], shape)).astype("float32")


def _compute(function, given):
    """What the function gives, and how far rounding may change it."""
    result = function(*(ops.convert_to_tensor(x) for x in given))
    if not ops.is_tensor(result):
        raise TypeError("no tensor")
    result = np.asarray(ops.convert_to_numpy(result))
    # Float32 rounds to 6e-8 of numbers up to 64, and sums some of them; bfloat16 to 4e-3.
    tolerance = 1e-5 if result.dtype.itemsize >= 4 or result.dtype == bool else 2e-2
    return result if result.dtype == bool else result.astype("float64"), tolerance


def _move(x, result):
    """The `Effect` of a function that keeps every value once, or None."""
    if result.size != x.size:
        return None
    if (result.ravel() == x.ravel()).all():
        return Effect("moves", result.shape)
    for axes in itertools.permutations(range(1, x.ndim)):
        moved = x.transpose(0, *axes)
        if moved.shape == result.shape and (moved == result).all():
            return Effect("moves", result.shape, (0, *axes))
    return None


def _is_gated(x, result, tolerance):
    """Whether a function is `keras.activations.glu`, which gives half as many units."""
    half = x.shape[-1] // 2
    if result.shape != (*x.shape[:-1], half):
        return False
    gated = x[..., :half] / (1 + np.exp(-x[..., half:].astype("float64")))
    return np.allclose(result, gated, rtol=tolerance, atol=tolerance)


def _elementwise(x, result, close):
    if result.dtype == bool:
        return Effect("element-wise")
    low, high = x.argmin(), x.argmax()
    values, result = x.ravel().astype("float64"), result.ravel()
    slope = (result[high] - result[low]) / (values[high] - values[low])
    if slope == 0 and (result == result[0]).all():
        return None  # it forgets what it is given
    if close(slope * (values - values[low]) + result[low], result):
        return Effect("affine")
    sigmoid = close(result, 1 / (1 + np.exp(-values)))
    return Effect("element-wise", family="sigmoid" if sigmoid else "unknown")
