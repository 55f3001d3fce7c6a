"""Linear fits between the layers of two models, and the closed-form refit of a layer."""

import warnings

import keras
from keras import ops

from keras_layer_entropy.measures.regression import ridge_regression
from keras_layer_entropy.probe import ActivationProbe, choose_layers
from keras_layer_entropy.pruning.graph import flat_graph
from keras_layer_entropy.statistics import GramStatistic
from keras_layer_entropy.streaming import Source, StreamingPass, strategy_scope

WIDEST = 8192  # features; the Gram matrix and its solution grow with their square and cube


def refit(student, teacher, paths, data, batch_size=256):
    """Gives Dense layers the kernel and bias with which they do what they did in another model.

    For each layer: the ridge regression that maps what it is given in `student` to what it computed
    in `teacher` before its activation function, over the calibration data. Layers after others of
    `paths` are fitted after them.

    Args:
        student: the model whose layers are refitted, in place.
        teacher: the model that they were in.
        paths: paths of Dense layers that both have.
        data: calibration data, as for `analyze_model`; labels are not used.
        batch_size: batch size for arrays.

    Returns:
        Path -> the relative residual of its regression; a layer with more than 8192 features is
        left as it is, with a warning.

    Raises:
        ValueError: empty data or activations that are not finite.

    Example: see `surgery.remove_layer`.
    """
    layers = choose_layers(student, list(paths)) if paths else {}
    wide = [path for path in paths if layers[path].kernel.shape[0] > WIDEST]
    if wide:
        warnings.warn(
            f"Not refitted, because they take more than {WIDEST} features: {', '.join(wide)}.",
            stacklevel=3,
        )
    residuals = {}
    for group in _in_turn(student, [path for path in layers if path not in wide]):
        fits = linear_fits(student, teacher, [(path, path) for path in group], data, batch_size)
        for (path, _), fit in fits.items():
            layers[path].kernel.assign(fit.kernel)
            if layers[path].use_bias:
                layers[path].bias.assign(fit.bias)
            residuals[path] = fit.residual
    return residuals


def linear_fits(student, teacher, pairs, data, batch_size=256):
    """How well some layers of a model follow linearly from what others are given, in one pass.

    Args:
        student: the model that is read on the left.
        teacher: the model that is read on the right; it may be the same.
        pairs: list of (path, path): what the first layer is given in `student`, and what the
            second computes in `teacher` before its activation function. Dense layers.
        data, batch_size: as for `refit`.

    Returns:
        Pair -> `LinearFit`.
    """
    source = Source(data, batch_size)
    with strategy_scope(student):
        fits = _FitPass(student, teacher, pairs)
        fits.build_statistics(source.first()[0])
    fits.run(source)
    return fits.result()


class _FitPass(StreamingPass):
    """One forward pass through both models."""

    def __init__(self, student, teacher, pairs):
        self._grams = {}
        super().__init__(student, [], name="refit")
        self._pairs = pairs
        self._given = ActivationProbe(student, [x for x, _ in pairs])
        self._wanted = ActivationProbe(teacher, [z for _, z in pairs])
        self._targets = choose_layers(teacher, [z for _, z in pairs])

    def build_statistics(self, x):
        seen = self(x)
        for index, pair in enumerate(self._pairs):
            features, targets = seen["x"][pair[0]].shape[-1], seen["z"][pair[1]].shape[-1]
            self._grams[pair] = GramStatistic(features, targets, name=f"gram_{index}")
        self._statistics = list(self._grams.values())

    def call(self, inputs, training=False):
        _, given = self._given.record(inputs)
        _, wanted = self._wanted.record(inputs)
        return {
            "x": {activation.path: activation.inputs for activation in given},
            "z": {a.path: _before_activation(self._targets[a.path], a.inputs) for a in wanted},
            "mask": {a.path: a.mask for a in wanted if a.mask is not None},
        }

    def update(self, seen, y, sample_weight):
        for (x, z), gram in self._grams.items():
            gram.update_state(seen["x"][x], seen["z"][z], seen["mask"].get(z))

    def result(self):
        return {
            (x, z): ridge_regression(
                gram.result(), gram.features, intercept=self._targets[z].use_bias
            )
            for (x, z), gram in self._grams.items()
        }


def _before_activation(layer, inputs):
    """What a Dense layer computes before its activation function, in float32 or better."""
    dtype = keras.backend.result_type("float32", layer.variable_dtype)
    z = ops.matmul(ops.cast(inputs, dtype), ops.cast(layer.kernel, dtype))
    return z + ops.cast(layer.bias, dtype) if layer.use_bias else z


def _in_turn(model, paths):
    """Groups of paths, each of them after all that it depends on."""
    graph, groups, left = flat_graph(model), [], list(paths)

    def waiting(call):
        return call.path in left

    while left:
        later = set()
        for path in left:
            (call,) = graph.calls_of(path)
            stopping, _, _ = graph.reaches(call.outputs[0], waiting)
            later.update(other.path for other in stopping)
        groups.append([path for path in left if path not in later])
        left = [path for path in left if path in later]
    return groups
