"""Linear fits between the layers of two models, and the closed-form refit of a layer."""

import collections
import warnings

import keras
from keras import ops

from keras_layer_entropy.backend import strategy_scope
from keras_layer_entropy.measures.gram import GramStatistic, fit_of, ridge_regression
from keras_layer_entropy.pruning.linear import assign, constrained, features_of, matrix
from keras_layer_entropy.recording.graph import flat_graph, shared_paths
from keras_layer_entropy.recording.layers import choose_layers
from keras_layer_entropy.recording.passes import Source, StreamingPass, unmoved
from keras_layer_entropy.recording.probe import ActivationProbe

WIDEST = 8192  # features; the Gram matrix and its solution grow with their square and cube


def refit(student, teacher, paths, data, batch_size=256, steps=None):
    """Gives layers the kernel and bias with which they do what they did in another model.

    For each layer: the ridge regression that maps what it is given in `student` to what it computed
    in `teacher` before its activation function, over the calibration data. Layers after others of
    `paths` are fitted after them. A shared layer is fitted to all its calls at once, and what a
    constraint forbids is projected away by it, both with a warning.

    Args:
        student: the model whose layers are refitted, in place.
        teacher: the model that they were in.
        paths: paths of layers that both have, of the kinds in `linear`.
        data: calibration data, as for `analyze_model`; labels are not used.
        batch_size: batch size for arrays.
        steps: number of batches to read, None for all.

    Returns:
        Path -> the relative residual of its regression; a layer with more than 8192 features is
        left as it is, with a warning.

    Raises:
        ValueError: data that are empty, have no end or do not fit the model, and inputs or
            activations that are not finite.

    Example: see `surgery.remove_layer`.
    """
    data = as_inputs(student, data)
    layers = choose_layers(student, list(paths)) if paths else {}
    wide = [path for path in paths if features_of(layers[path]) > WIDEST]
    if wide:
        warnings.warn(
            f"Not refitted, because they take more than {WIDEST} features: {', '.join(wide)}.",
            stacklevel=3,
        )
    residuals = {}
    groups = _in_turn(student, [path for path in layers if path not in wide])
    if len(groups) > 1 and not Source(data, batch_size, steps).repeatable:
        raise ValueError(
            f"The calibration data, a {type(data).__name__}, can be read only once, and "
            f"{', '.join(groups[1])} can be refitted only after {', '.join(groups[0])}: pass "
            "arrays, a tf.data.Dataset or a PyDataset."
        )
    for group in groups:
        pairs = [(path, path) for path in group]
        for (path, _), fit in linear_fits(
            student, teacher, pairs, data, batch_size, steps=steps
        ).items():
            assign(layers[path], fit.kernel, fit.bias)
            residuals[path] = fit.residual
    _warn_of_shared(student, residuals)
    _warn_of_constraints({path: layers[path] for path in residuals})
    return residuals


def linear_fits(student, teacher, pairs, data, batch_size=256, *, steps=None):
    """How well some layers of a model follow linearly from what others are given, in one pass.

    Args:
        student: the model that is read on the left.
        teacher: the model that is read on the right; it may be the same.
        pairs: list of (path, path): what the first layer is given in `student`, and what the
            second computes in `teacher` before its activation function. Layers of the kinds in
            `linear`, called equally often.
        data, batch_size, steps: as for `refit`, likewise errors.

    Returns:
        Pair -> `LinearFit`, of a kernel that the second layer's constraint allows. Both models are
        left as they were, states that a pass moves among it.
    """
    source = Source(as_inputs(student, data), batch_size, steps, must_end=True)
    check_inputs(student, source.first()[0])
    with strategy_scope(student):
        fits = _GramPass(student, teacher, pairs)
    with unmoved(student), unmoved(teacher):
        fits.run(source)
    return fits.result()


class _GramPass(StreamingPass):
    """One forward pass through both models."""

    def __init__(self, student, teacher, pairs):
        given, wanted = [x for x, _ in pairs], [z for _, z in pairs]
        takers, self._targets = choose_layers(student, given), choose_layers(teacher, wanted)
        self._grams = {
            (x, z): GramStatistic(
                features_of(takers[x]), matrix(self._targets[z]).shape[-1], name=f"gram_{index}"
            )
            for index, (x, z) in enumerate(pairs)
        }
        watched = _watched(student)
        self._finite = _FiniteStatistic(watched)
        super().__init__(student, [*self._grams.values(), self._finite], name="refit")
        self._student = student
        self._given = ActivationProbe(student, list({*given, *watched}))
        self._wanted = ActivationProbe(teacher, wanted)

    def call(self, inputs, training=False):
        _, given = self._given.record(inputs)
        _, wanted = self._wanted.record(inputs)
        return {
            "x": _by_layer(given, lambda a: a.inputs),
            "z": _by_layer(wanted, self._before_activation),
            "mask": _by_layer(wanted, lambda a: a.mask),
            "finite": _by_layer(given, _is_finite),
        }

    def _before_activation(self, activation):
        """What a layer computes before its activation function, in float32 or better."""
        layer = self._targets[_path(activation)]
        dtype = keras.backend.result_type("float32", layer.variable_dtype)
        z = ops.matmul(ops.cast(activation.inputs, dtype), ops.cast(matrix(layer), dtype))
        return z if layer.bias is None else z + ops.cast(ops.reshape(layer.bias, (-1,)), dtype)

    def update(self, seen, y, sample_weight):
        self._finite.update_state(seen["finite"])
        for (x, z), gram in self._grams.items():
            calls = zip(seen["x"][x], seen["z"][z], seen["mask"][z], strict=True)
            for given, wanted, mask in calls:
                gram.update_state(given, wanted, mask)

    def result(self):
        self._finite.check(self._student)
        return {
            (x, z): _fitted(self._targets[z], gram.result(), gram.features)
            for (x, z), gram in self._grams.items()
        }


class _FiniteStatistic(keras.metrics.Metric):
    """For each layer, whether all that it computed before its activation function was finite.

    An activation function may hide it: the relu of NaN is 0 on some machines.
    """

    def __init__(self, paths):
        super().__init__(name="finite", dtype="float32")
        self._paths = paths
        self._bad = self.add_variable((max(len(paths), 1),), "zeros", "float32", name="bad")

    def update_state(self, finite):
        bad = [1.0 - ops.min(ops.stack(finite[path])) for path in self._paths]
        if bad:
            self._bad.assign_add(ops.stack(bad))

    def result(self):
        return ops.max(self._bad)

    def check(self, model):
        bad = ops.convert_to_numpy(self._bad) > 0
        found = [path for path, is_bad in zip(self._paths, bad, strict=False) if is_bad]
        if found:
            raise ValueError(
                f"The activations are not finite (NaN or infinite) from {found[0]!r} on in "
                f"{model.name!r}: look for such values in the data, and in the weights."
            )


def _fitted(layer, gram, features):
    fit = ridge_regression(gram, features, intercept=layer.bias is not None)
    kernel = constrained(layer, fit.kernel)
    return fit if kernel is fit.kernel else fit_of(kernel, gram, features, layer.bias is not None)


def _watched(model):
    """The layers with weights whose outputs can be recorded, by path."""
    return list(
        dict.fromkeys(
            call.path
            for call in flat_graph(model).calls
            if getattr(call.operation, "weights", ())
            and not isinstance(call.operation, keras.layers.TimeDistributed)
        )
    )


def _path(activation):
    return activation.path.partition("#")[0]


def _by_layer(activations, value):
    """Path of each layer -> list of a value of each of its calls."""
    found = collections.defaultdict(list)
    for activation in activations:
        found[_path(activation)].append(value(activation))
    return dict(found)


def _is_finite(activation):
    """1 where all that a layer computes before its activation function is finite, else 0."""
    values = activation.pre_activation
    if not keras.backend.is_float_dtype(keras.backend.standardize_dtype(values.dtype)):
        return ops.ones(())
    finite = ops.isfinite(values)
    mask = activation.mask
    if mask is not None and tuple(mask.shape) == tuple(values.shape)[: len(mask.shape)]:
        mask = ops.reshape(mask, (*ops.shape(mask), *[1] * (len(values.shape) - len(mask.shape))))
        finite = ops.logical_or(finite, ops.logical_not(mask))
    return ops.cast(ops.all(finite), "float32")


def as_inputs(model, data):
    """Data that say that they are inputs alone: a list of one array for each input is no (x, y)."""
    several = isinstance(data, list) and len(data) == len(model.inputs) > 1
    return (data,) if several and all(hasattr(part, "shape") for part in data) else data


def check_inputs(model, x):
    """Raises for a first batch that the model cannot take, before Keras does it at length."""
    leaves, inputs = keras.tree.flatten(x), model.inputs
    if isinstance(x, dict):
        return  # by name, perhaps with more than the model takes
    if len(leaves) != len(inputs):
        raise ValueError(
            f"The calibration data have {len(leaves)} inputs; {model.name!r} takes {len(inputs)}."
        )
    for leaf, tensor in zip(leaves, inputs, strict=True):
        shape, expected = tuple(leaf.shape), tuple(tensor.shape)
        if not _fits(shape, expected):
            batch = " Batch them: data.batch(256)." if _fits((None, *shape), expected) else ""
            raise ValueError(
                f"The calibration data have inputs of shape {shape}; {model.name!r} takes "
                f"{expected}.{batch}"
            )
        if "str" in str(leaf.dtype) and tensor.dtype != "string":
            raise ValueError(
                f"The calibration data are text; {model.name!r} takes {tensor.dtype} numbers."
            )


def _fits(shape, expected):
    """Whether Keras takes a batch of a shape, perhaps with a last axis of one more or less."""
    if len(shape) == len(expected) - 1 and expected[-1] == 1:
        expected = expected[:-1]
    if len(shape) == len(expected) + 1 and shape[-1] == 1:
        shape = shape[:-1]
    pairs = list(zip(shape, expected, strict=False))[1:]
    return len(shape) == len(expected) and all(None in pair or pair[0] == pair[1] for pair in pairs)


def _warn_of_shared(model, residuals):
    shared = shared_paths(flat_graph(model))
    found = [f"{path} (residual {residuals[path]:.3g})" for path in residuals if path in shared]
    if found:
        warnings.warn(
            f"{', '.join(found)}: called several times, and fitted to all calls at once. What it "
            "gives changes in those, too, that took nothing of what was removed.",
            stacklevel=4,
        )


def _warn_of_constraints(layers):
    bound = {path: x for path, x in layers.items() if x.kernel_constraint or x.bias_constraint}
    if bound:
        kinds = {
            type(constraint).__name__
            for layer in bound.values()
            for constraint in (layer.kernel_constraint, layer.bias_constraint)
            if constraint is not None
        }
        warnings.warn(
            f"The refitted weights of {', '.join(bound)} were projected onto their constraints "
            f"({', '.join(sorted(kinds))}), so that they fit less well than least squares.",
            stacklevel=4,
        )


def _in_turn(model, paths):
    """Groups of paths, each of them after all that it depends on."""
    graph, groups, left = flat_graph(model), [], list(paths)

    def waiting(call):
        return call.path in left

    while left:
        later = set()
        for path in left:
            for call in graph.calls_of(path):
                stopping, _, _ = graph.reaches(call.outputs[0], waiting)
                later.update(other.path for other in stopping)
        groups.append([path for path in left if path not in later])
        left = [path for path in left if path in later]
    return groups
