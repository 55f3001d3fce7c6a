"""Run statistics over data through Keras's own `evaluate`.

Keras's trainer does the batching, compiling, progress bars, distribution and every backend; a pass
only says what to look at in a batch.
"""

import contextlib
import itertools
import numbers

import keras
import numpy as np
from keras import ops, tree

_FEW_BATCHES = 32  # pass in less time than XLA needs to compile


class Source:
    """Data of any kind that `evaluate` takes, looked at once.

    Args:
        data: `(x, y)` or `(x, y, sample_weight)` arrays, inputs alone, a `tf.data.Dataset`, a
            `keras.utils.PyDataset` or a generator of batches.
        batch_size: batch size for arrays.

    Attributes:
        keywords: arguments for `evaluate`.
        repeatable: whether the data can be read again.
        worth_compiling: whether XLA may pay: there are not known to be few batches, and all surely
            have the same shape, but for their size. (XLA takes seconds, for every shape anew.)

    Raises:
        ValueError: the data are empty (from `first`, where that is not known before).

    Example:

    >>> source = Source((np.ones((10, 3)), np.zeros(10)), batch_size=4)
    >>> source.repeatable, [part.shape for part in source.first()[:2]]
    (True, [(4, 3), (4,)])
    """

    def __init__(self, data, batch_size=256):
        self.repeatable = True
        few = 0 <= _known_batches(data, batch_size) < _FEW_BATCHES
        self.worth_compiling = not few and _has_one_shape(data)
        self.keywords = {"x": data}
        self._batches = data  # as they are for a loader that Keras knows, or complains of
        if isinstance(data, keras.utils.PyDataset):
            self._batches = (data[i] for i in range(data.num_batches or 1))
        elif hasattr(data, "__next__"):
            self._take_generator(data)
        elif not hasattr(data, "element_spec") and (
            isinstance(data, tuple | list | dict) or hasattr(data, "shape")
        ):
            self._take_arrays(data, batch_size)

    def first(self):
        """The first batch, `(x, y, sample_weight)`."""
        for batch in self._batches:
            return keras.utils.unpack_x_y_sample_weight(batch)
        raise ValueError("The data hold no samples: they yielded no batch.")

    def _take_generator(self, data):
        first, rest = itertools.tee(itertools.islice(data, 1))
        # Keras takes generators of tuples, no other iterators.
        batches = itertools.chain(rest, data)
        tuples = (tuple(b) if isinstance(b, list | tuple) else (b,) for b in batches)
        self.keywords, self._batches, self.repeatable = {"x": tuples}, first, False

    def _take_arrays(self, data, batch_size):
        x, y, sample_weight = map(_as_array, keras.utils.unpack_x_y_sample_weight(data))
        batch = tree.map_structure(
            lambda array: None if array is None else array[:batch_size], (x, y, sample_weight)
        )
        if any(len(array) == 0 for array in tree.flatten(batch[0])):
            raise ValueError("The data hold no samples: x is empty.")
        self.keywords = dict(x=x, y=y, sample_weight=sample_weight, batch_size=batch_size)
        self._batches = [batch]


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
        self._jit = None  # not compiled yet
        self._jit_failed = False
        self.built = True

    def update(self, seen, y, sample_weight):
        """Adds a batch: `seen` is what `call` returned."""
        raise NotImplementedError

    def run(self, source, steps=None, verbose=0):
        """Streams a `Source` through; returns the logs of `evaluate`."""
        jit = source.worth_compiling and not self._jit_failed and _gains_from_jit(self._model)
        if self._jit is None or (jit and not self._jit):
            self._compile(jit)
        try:
            return self.evaluate(return_dict=True, steps=steps, verbose=verbose, **source.keywords)
        except Exception as error:
            if not self._jit or "XLA" not in str(error):
                raise
            # XLA does not know one of the model's operations.
            self._jit_failed = True
            self._compile(jit=False)
            return self.run(source, steps, verbose)

    def _compile(self, jit):
        with strategy_scope(self._model):
            self.compile(
                run_eagerly=self._model.run_eagerly,
                steps_per_execution=self._model.steps_per_execution,
                jit_compile=jit or "auto",
            )
        self._jit = jit

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

    def _open_name_scope(self):
        # Variables that the model makes in here are to be named as in a call of its own.
        return contextlib.nullcontext()


def strategy(model):
    """The TensorFlow distribution strategy that the model was made under, or None."""
    return getattr(model, "_distribute_strategy", None)


def strategy_scope(model):
    """The scope of that strategy, a context manager."""
    return contextlib.nullcontext() if strategy(model) is None else strategy(model).scope()


def _as_array(values):
    """A Python list of numbers as an array; everything else as it is."""
    plain = isinstance(values, list) and values and isinstance(values[0], numbers.Number)
    return np.asarray(values) if plain else values


def _known_batches(data, batch_size):
    """The number of batches, -1 where it is not known."""
    if isinstance(data, keras.utils.PyDataset):
        return -1 if data.num_batches is None else data.num_batches
    if hasattr(data, "cardinality"):
        return int(data.cardinality())  # negative where it is not known
    arrays = [part for part in tree.flatten(data) if hasattr(part, "shape")]
    if hasattr(data, "__next__") or not arrays or not arrays[0].shape:
        return -1
    return -(-arrays[0].shape[0] // batch_size)


def _has_one_shape(data):
    spec = getattr(data, "element_spec", None)
    if spec is None:
        return isinstance(data, tuple | list | dict) or hasattr(data, "shape")
    return all(None not in tuple(part.shape)[1:] for part in tree.flatten(spec))


def _gains_from_jit(model):
    """Whether XLA makes the model faster where Keras leaves it off.

    That is on CPUs, for matrix products with element-wise functions between them; convolutions
    and recurrent layers run slower.
    """
    if keras.backend.backend() != "tensorflow" or model.run_eagerly or strategy(model):
        return False
    slower = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D, keras.layers.RNN)
    slower += (keras.layers.SeparableConv2D, keras.layers.DepthwiseConv2D)
    return all(
        layer.supports_jit and not isinstance(layer, slower) for layer in model._flatten_layers()
    )
