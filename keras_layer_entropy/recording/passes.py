"""Run statistics over data through Keras's own `evaluate`.

Keras's trainer does the batching, compiling, progress bars, distribution and every backend; a pass
only says what to look at in a batch.
"""

import contextlib
import enum
import itertools
import math
import numbers

import keras
import numpy as np
from keras import ops, tree
from keras.src.trainers.data_adapters import get_data_adapter
from keras.src.trainers.data_adapters.array_slicing import can_slice_array, convert_to_sliceable

from keras_layer_entropy.backend import (
    as_in_a_step,
    batches_of,
    gains_from_jit,
    is_quick_untraced,
    own_draws,
    strategy_scope,
    without_gradients,
)

# Batches that pass in less time than it takes to trace a step, and to compile it by XLA.
_FEW, _MANY = 6, 400


class _Way(enum.IntEnum):
    """How steps are run: each way takes longer to begin with than the one before."""

    EAGER = 0
    TRACED = 1
    XLA = 2


class Source:
    """Data of any kind that `evaluate` takes, looked at once.

    Keras's own adapters read them, here and in a pass, so that both see the same.

    Args:
        data: `(x, y)` or `(x, y, sample_weight)` arrays, inputs alone, a `tf.data.Dataset`, a
            `keras.utils.PyDataset`, a generator of batches, or what else `evaluate` takes.
        batch_size: batch size for arrays; None for Keras's default.
        steps: number of batches to read, None for all.
        must_end: whether the end has to come: data of which nobody can know that are refused
            without `steps`.

    Attributes:
        keywords: arguments for `evaluate`, but for `steps`.
        steps: as given.
        class_names: those that the data bring, or None.
        repeatable: whether the data can be read again.
        batches: how many there are, infinite where nobody knows.
        one_shape: whether all batches surely have the same shape, but for their size.

    Raises:
        ValueError: no data that `evaluate` takes, empty ones (from `first`, where that is not known
            before), ones without end and without `steps`.

    Example:

    >>> source = Source((np.ones((10, 3)), np.zeros(10)), batch_size=4)
    >>> source.repeatable, [tuple(part.shape) for part in source.first()[:2]]
    (True, [(4, 3), (4,)])
    """

    def __init__(self, data, batch_size=256, steps=None, must_end=False):
        _check_positive(batch_size=batch_size, steps=steps)
        self.steps = steps
        self.class_names = getattr(data, "class_names", None)
        self.repeatable = not hasattr(data, "__next__")
        if not self.repeatable:
            self._take_generator(data)
        elif isinstance(data, tuple | list | dict) or can_slice_array(data):
            self._take_arrays(data, batch_size)
        else:
            self._take_loader(data)
        if steps is None:
            _check_end(data, self._num_batches, must_end)
        self.batches = min(self._num_batches or math.inf, steps or math.inf)

    def first(self):
        """The first batch, `(x, y, sample_weight)`, as a pass gets it."""
        for batch in self._first_batches():
            return keras.utils.unpack_x_y_sample_weight(tree.map_structure(as_in_a_step, batch))
        raise ValueError("The data hold no samples: they yielded no batch.")

    def _take_generator(self, data):
        first, rest = itertools.tee(itertools.islice(data, 1))
        # Keras takes generators of tuples, no other iterators.
        self.keywords = {"x": _as_tuples(itertools.chain(rest, data))}
        self._num_batches, self.one_shape = None, False
        self._first_batches = lambda: _one_by_one(first)

    def _take_arrays(self, data, batch_size):
        parts = [_as_array(part) for part in keras.utils.unpack_x_y_sample_weight(data)]
        leaves = _checked_leaves(*parts)
        # Keras needs the entries of SciPy's matrices row by row.
        parts = tree.map_structure(lambda x: x.tocsr() if hasattr(x, "tocsr") else x, parts)
        adapter = get_data_adapter(*parts, batch_size=batch_size)  # which compares lengths
        self.keywords = dict(zip(("x", "y", "sample_weight"), parts, strict=True))
        self.keywords["batch_size"] = batch_size
        self._num_batches = adapter.num_batches
        self.one_shape = all(hasattr(leaf, "__array__") for leaf in leaves)  # dense ones
        if all(isinstance(leaf, np.ndarray) for leaf in leaves):
            # Keras copies everything to make a data set of it.
            parts = tree.map_structure(
                lambda part: None if part is None else part[: adapter.batch_size], parts
            )
        self._first_batches = lambda: batches_of(get_data_adapter(*parts, batch_size=batch_size))

    def _take_loader(self, data):
        try:
            adapter = get_data_adapter(data)
        except ValueError as error:
            raise ValueError(
                f"data is {_described(data)}; expected (x, y) or (x, y, sample_weight) arrays, "
                "inputs alone, a tf.data.Dataset, a keras.utils.PyDataset or a generator of "
                "batches."
            ) from error
        self.keywords = {"x": data}
        self._num_batches = adapter.num_batches
        self.one_shape = _has_one_shape(data)
        if isinstance(data, keras.utils.PyDataset):  # without its workers
            items = range(1 if data.num_batches is None else min(data.num_batches, 1))
            self._first_batches = lambda: _one_by_one(data[i] for i in items)
        else:
            self._first_batches = lambda: batches_of(adapter)


class StreamingPass(keras.Model):
    """Accumulates statistics instead of predicting.

    Subclasses implement `call` (inputs to whatever is looked at) and `update`.

    Args:
        model: the model that is looked at; how it is compiled tells how the pass is.
        statistics: list of `keras.metrics.Metric`.
    """

    def __init__(self, model, statistics, name):
        super().__init__(name=name)
        self._model = model
        self._statistics = statistics
        self._way = None  # not compiled yet
        self._batches = 0  # of all passes
        self._jit_failed = False
        self.built = True

    def update(self, seen, y, sample_weight):
        """Adds a batch: `seen` is what `call` returned."""
        raise NotImplementedError

    def run(self, source, verbose=0):
        """Streams a `Source` through; returns the logs of `evaluate`."""
        self._batches += source.batches if source.one_shape else 0
        way = self._cheapest(source)
        if self._way is None or way > self._way:
            self._compile(way)
        try:
            return self.evaluate(
                return_dict=True, steps=source.steps, verbose=verbose, **source.keywords
            )
        except Exception as error:
            if self._way != _Way.XLA or "XLA" not in str(error):
                raise
            # XLA does not know one of the model's operations.
            self._jit_failed = True
            self._compile(_Way.TRACED)
            return self.run(source, verbose)

    def make_ready(self):
        """Compiles it where it was never run: after that all its metrics are there."""
        if self._way is None:
            self._compile(_Way.TRACED)

    def _cheapest(self, source):
        """The way that pays for what was looked at and is about to be."""
        if not source.one_shape:  # for every shape XLA takes a second
            return _Way.TRACED
        if self._batches <= _FEW and is_quick_untraced(self._model):
            return _Way.EAGER
        jit = self._batches >= _MANY and not self._jit_failed and gains_from_jit(self._model)
        return _Way.XLA if jit else _Way.TRACED

    def _compile(self, way):
        with strategy_scope(self._model):
            self.compile(
                run_eagerly=self._model.run_eagerly or way == _Way.EAGER,
                steps_per_execution=self._model.steps_per_execution,
                jit_compile=way == _Way.XLA or "auto",
            )
        self._way = way

    @property
    def metrics(self):
        own = [self._loss_tracker] if self._loss_tracker is not None else []
        return [*own, *self._statistics]

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=False):
        return ops.zeros(())

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        self.update(y_pred, y, sample_weight)
        return self.get_metrics_result()

    def get_metrics_result(self):
        return {"loss": self._loss_tracker.result()}

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        # All is built. Keras would add up the replicas' parts of the first batch here, and fail
        # where these are not of one size.
        pass

    def _open_name_scope(self):
        # Variables that the model makes in here are to be named as in a call of its own.
        return contextlib.nullcontext()


@contextlib.contextmanager
def rehearsal(model):
    """A first run of a model on a batch, to see what it gives: only the pass itself is to count.

    What is assigned to Keras variables inside is forgotten, and new ones start as they would
    without it.
    """
    # Keras takes penalties of what such a scope knows alone.
    known = [(v, v.value) for v in model.trainable_variables if v.regularizer is not None]
    with strategy_scope(model), without_gradients(), keras.StatelessScope(state_mapping=known):
        yield


@contextlib.contextmanager
def unmoved(model):
    """Puts back, in the end, what a forward pass may move: states and seeds."""
    layers = model._flatten_layers()
    weights = {id(v) for layer in layers for v in layer._trainable_variables}
    moving = [v for layer in layers for v in own_variables(layer) if id(v) not in weights]
    before = [np.array(ops.convert_to_numpy(variable)) for variable in moving]
    try:
        with own_draws():
            yield
    finally:
        for variable, value in zip(moving, before, strict=True):
            variable.assign(value)


def own_variables(layer):
    """The variables that a layer holds itself.

    Its weights, those of its seeds and metrics, and what it holds without Keras knowing, as
    recurrent layers hold their states.
    """
    seeds = [generator.state for generator in layer._seed_generators]
    counts = [variable for metric in layer._metrics for variable in metric.variables]
    held = [x for x in vars(layer).values() if isinstance(x, list | tuple | keras.Variable)]
    hidden = [x for x in tree.flatten(held) if isinstance(x, keras.Variable)]
    known = [*layer._trainable_variables, *layer._non_trainable_variables, *seeds, *counts]
    return list({id(variable): variable for variable in (*known, *hidden)}.values())


def _one_by_one(batches):
    """The same for batches that are made one by one, each of them read for itself."""
    for batch in batches:
        yield from batches_of(get_data_adapter(_as_tuples([batch])))


def _as_tuples(batches):
    """A generator of the tuples that Keras expects of one."""
    return (tuple(b) if isinstance(b, list | tuple) else (b,) for b in batches)


def _as_array(values):
    """A Python list of numbers or texts as an array; everything else as it is."""
    plain = isinstance(values, list) and values and isinstance(values[0], numbers.Number | str)
    return np.asarray(values) if plain else values


def _checked_leaves(x, y, sample_weight):
    """The arrays among data; raises for what is no array of numbers or texts."""
    found = []
    for name, part in {"x": x, "y": y, "sample_weight": sample_weight}.items():
        leaves = [leaf for leaf in tree.flatten(part) if leaf is not None]
        for leaf in leaves:
            if not _is_readable(leaf):
                raise ValueError(
                    f"{name} holds {_described(leaf)}; expected arrays or tensors of numbers, one "
                    f"entry per sample, such as np.asarray({name}, dtype=...) makes them. (Texts "
                    "as labels: np.unique(labels, return_inverse=True)[1] numbers them.)"
                )
        if name == "x" and not leaves:
            raise ValueError("data has no inputs: expected (x, y) arrays, or inputs alone.")
        if name == "x" and any(leaf.shape[0] == 0 for leaf in leaves):
            raise ValueError("The data hold no samples: x is empty.")
        found += leaves
    return found


def _is_readable(array):
    """Whether Keras knows what an array, tensor or table holds."""
    if not can_slice_array(array) or not len(array.shape):
        return False
    if not isinstance(array, np.ndarray) and not hasattr(array, "iloc"):
        return True
    try:
        head = convert_to_sliceable(array.iloc[:1] if hasattr(array, "iloc") else array[:1])
    except ValueError:
        return False
    values = head.convert_to_numpy(head[:])
    return values.dtype != object or all(isinstance(value, str | bytes) for value in values.flat)


def _described(value):
    words = " ".join(repr(value).split())
    return f"{words[:60]}{'...' if len(words) > 60 else ''} ({type(value).__name__})"


def _check_positive(**values):
    for name, value in values.items():
        if value is not None and (not isinstance(value, numbers.Integral) or value < 1):
            raise ValueError(f"{name}={value!r}; expected a positive int.")


def _check_end(data, num_batches, must_end):
    """Raises where data have no end, or `must_end` and nobody can know that they do."""
    cardinality = getattr(data, "cardinality", None)  # of tf.data; -1 says that there is no end
    cardinality = cardinality() if callable(cardinality) else cardinality
    endless = cardinality == -1 or (isinstance(data, keras.utils.PyDataset) and num_batches is None)
    if endless:
        raise ValueError(
            f"The data, {_described(data)}, have no end: pass steps=, the number of batches to "
            "read."
        )
    if must_end and num_batches is None and not _surely_ends(data):
        raise ValueError(
            f"Nobody can know whether the data, {_described(data)}, have an end: pass steps=, the "
            "number of batches to read, or for a tf.data.Dataset apply "
            "tf.data.experimental.assert_cardinality."
        )


def _surely_ends(dataset):
    """Whether no part of a `tf.data.Dataset` repeats itself or is made by a Python generator."""
    if not hasattr(dataset, "_functions"):
        return False
    if int(dataset.cardinality()) != -2:  # -2 says that it is not known, as after `filter`
        return int(dataset.cardinality()) >= 0
    operations = [
        operation.type
        for function in dataset._functions()
        for operation in function.function.graph.get_operations()
    ]
    # A generator's data set is made inside a function: every other is among the inputs.
    return not {"RepeatDataset", "GeneratorDataset"} & set(operations) and all(
        map(_surely_ends, dataset._inputs())
    )


def _has_one_shape(data):
    """Whether a data set says that its batches are dense and of one shape, but for their size."""
    spec = getattr(data, "element_spec", None)
    return spec is not None and all(
        type(part).__name__ == "TensorSpec" and None not in tuple(part.shape)[1:]
        for part in tree.flatten(spec)
    )
