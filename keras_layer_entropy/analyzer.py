"""Model + data -> EntropyProfile."""

import contextlib
import dataclasses
import itertools
import numbers
import warnings

import keras
import numpy as np
from keras import ops, tree

from keras_layer_entropy.model_statistics import ModelStatistics
from keras_layer_entropy.probe import ActivationProbe
from keras_layer_entropy.untrained import untrained


def analyze_model(
    model, data, *, batch_size=256, steps=None, baseline=False, seed=0, verbose="auto", **options
):
    """Measures the layers of a model on data, class by class, in one forward pass.

    Args:
        model: any Keras model. Its weights are as before afterwards; its own metrics are reset,
            as by `model.evaluate`.
        data: `(x, y)` or `(x, y, sample_weight)` arrays, inputs alone, a `tf.data.Dataset`, a
            `keras.utils.PyDataset` or a generator of batches, as for `model.evaluate`.
        batch_size: batch size for arrays.
        steps: number of batches, None for all.
        baseline: also measure the same network freshly initialised, into `profile.baseline`; the
            data are read twice.
        seed: seed of that initialisation.
        verbose: as in `model.evaluate`.
        **options: `layers`, `num_classes`, `measures`, `pattern`, `normalization`, as for
            `EntropyAnalyzer`.

    Returns:
        `EntropyProfile`.

    Raises:
        ValueError: no such layer, empty data, labels that are no class, unknown options.

    Example:

    >>> import numpy as np
    >>> dense = keras.layers.Dense
    >>> model = keras.Sequential([dense(8, "relu", name="hidden"), dense(3, name="logits")])
    >>> x, y = np.random.normal(size=(90, 4)), np.arange(90) % 3
    >>> profile = analyze_model(model, (x, y), verbose=0)
    >>> profile.layers, profile.entropy.shape, profile.count.tolist()
    (('hidden', 'logits'), (2, 3), [30, 30, 30])
    """
    analyzer = EntropyAnalyzer(model, **options)
    return analyzer.analyze(
        data, batch_size=batch_size, steps=steps, baseline=baseline, seed=seed, verbose=verbose
    )


class EntropyAnalyzer:
    """Measures a model again and again without building and compiling again.

    Args:
        model: any Keras model.
        layers: as for `ActivationProbe`; None for every `Dense`.
        num_classes: number of classes, None to take it from the model's output; 1 for one class
            of everything; `{key: number or None}` to choose whose labels count where there are
            several outputs.
        measures: names out of `statistics.MEASURES`.
        pattern, normalization: as for `measures.entropy.activation_entropy`.

    Raises:
        ValueError: no such layer, measure, pattern or normalization.

    Example:

    >>> import numpy as np
    >>> model = keras.Sequential([keras.layers.Dense(8, "relu"), keras.layers.Dense(3)])
    >>> analyzer = EntropyAnalyzer(model, measures=("activation_entropy", "state_entropy"))
    >>> x, y = np.random.normal(size=(90, 4)), np.arange(90) % 3
    >>> before, after = (analyzer.analyze((scale * x, y), verbose=0) for scale in (1.0, 3.0))
    >>> sorted(after.values)
    ['activation_entropy', 'state_entropy']
    """

    def __init__(
        self,
        model,
        layers=None,
        num_classes=None,
        measures=("activation_entropy",),
        pattern="mean_then_softmax",
        normalization="log",
    ):
        self.model = model
        self._statistics = ModelStatistics(model, num_classes, measures, pattern, normalization)
        with _strategy_scope(model):
            self._probe = ActivationProbe(model, layers)
        self._pass = None
        self._jit = False

    def analyze(self, data, *, batch_size=256, steps=None, baseline=False, seed=0, verbose="auto"):
        """Measures the model on data; arguments, result and errors as for `analyze_model`."""
        keywords, batches, again = _read(data, batch_size)
        keywords |= {"steps": steps, "verbose": verbose}
        if baseline and not again:
            raise ValueError(
                f"baseline=True reads the data twice, but a {type(data).__name__} can be read only "
                "once: pass arrays, a tf.data.Dataset or a PyDataset, or measure without it."
            )
        if self._pass is None:
            self._pass = self._prepare(*keras.utils.unpack_x_y_sample_weight(_first(batches)))
            self._compile(jit=_has_one_shape(data) and _gains_from_jit(self.model))
        profile = self._measure(keywords)
        if baseline:
            with untrained(self.model, seed):
                twin = self._measure(keywords | {"verbose": 0})
            settings = {**profile.settings, "baseline_seed": seed}
            profile = dataclasses.replace(profile, baseline=twin, settings=settings)
        return profile

    def _compile(self, jit):
        with _strategy_scope(self.model):
            self._pass.compile(
                run_eagerly=self.model.run_eagerly,
                steps_per_execution=self.model.steps_per_execution,
                jit_compile=jit or "auto",
            )
        self._jit = jit

    def _measure(self, keywords):
        self._statistics.reset()
        try:
            metrics = self._pass.evaluate(return_dict=True, **keywords)
        except Exception as error:
            if not self._jit or "XLA" not in str(error):
                raise
            # XLA does not know one of the model's operations.
            self._compile(jit=False)
            return self._measure(keywords)
        return self._statistics.profile(metrics if self._pass.measures_model else {})

    def _prepare(self, x, y, sample_weight):
        """Builds everything on a batch, so that the pass itself only compiles and runs."""
        outputs, activations = self._probe.record(x)
        with _strategy_scope(self.model):
            self._statistics.build(activations, outputs, y)
            runner = _Pass(self._probe, self._statistics)
        if _strategy(self.model) is None:  # a first try, whose errors are easier to read
            self._statistics.update([a.features() for a in activations], y, sample_weight)
        runner.measures_model = self._model_can_be_measured(x, y, outputs, sample_weight)
        return runner

    def _model_can_be_measured(self, x, y, outputs, sample_weight):
        """Whether the model's own loss and metrics can be computed from these data."""
        if not self.model.compiled or y is None:
            return False
        given = dict(x=x, y=y, y_pred=outputs, sample_weight=sample_weight)
        try:
            self.model.compute_loss(**given, training=False)
            self.model.compute_metrics(**given)
        except Exception as error:  # noqa: BLE001 - the user's code may raise anything
            warnings.warn(
                "The model's own loss and metrics are left out of the profile, because they "
                f"cannot be computed from these data: {error}",
                stacklevel=4,
            )
            return False
        return True


class _Pass(keras.Model):
    """Runs through Keras's own `evaluate`, accumulating instead of predicting."""

    def __init__(self, probe, statistics):
        super().__init__(name="entropy_analyzer")
        self.probe = probe
        self._statistics = statistics
        self.measures_model = False
        self.built = True

    @property
    def metrics(self):
        own = [self._loss_tracker] if self._loss_tracker is not None else []
        models = self.probe.model.metrics if self.measures_model else []
        return [*own, *self._statistics.metrics, *models]

    def call(self, inputs, training=False):
        outputs, activations = self.probe.record(inputs)
        return {"outputs": outputs, "features": [a.features() for a in activations]}

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=False):
        if not self.measures_model:
            return ops.zeros(())
        return self.probe.model.compute_loss(
            x=x, y=y, y_pred=y_pred["outputs"], sample_weight=sample_weight, training=False
        )

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        self._statistics.update(y_pred["features"], y, sample_weight)
        if self.measures_model:
            self.probe.model.compute_metrics(x, y, y_pred["outputs"], sample_weight)
        return self.get_metrics_result()

    def get_metrics_result(self):
        models = self.probe.model.get_metrics_result() if self.measures_model else {}
        return {**models, "loss": self._loss_tracker.result()}

    def _open_name_scope(self):
        return contextlib.nullcontext()


def _read(data, batch_size):
    """`(keywords for evaluate, batches to look at the first, whether they can be read again)`."""
    if isinstance(data, keras.utils.PyDataset):
        return {"x": data}, (data[i] for i in range(data.num_batches or 1)), True
    if hasattr(data, "element_spec"):  # tf.data.Dataset
        return {"x": data}, data, True
    if hasattr(data, "__next__"):
        first, rest = itertools.tee(itertools.islice(data, 1))
        # Keras takes generators of tuples, no other iterators.
        batches = itertools.chain(rest, data)
        tuples = (tuple(b) if isinstance(b, list | tuple) else (b,) for b in batches)
        return {"x": tuples}, first, False
    if not (isinstance(data, tuple | list | dict) or hasattr(data, "shape")):
        return {"x": data}, data, True  # a loader that Keras knows, or complains of
    x, y, sample_weight = map(_as_array, keras.utils.unpack_x_y_sample_weight(data))
    batch = tree.map_structure(
        lambda array: None if array is None else array[:batch_size], (x, y, sample_weight)
    )
    if any(len(array) == 0 for array in tree.flatten(batch[0])):
        raise ValueError("The data hold no samples: x is empty.")
    return dict(x=x, y=y, sample_weight=sample_weight, batch_size=batch_size), [batch], True


def _as_array(values):
    """A Python list of numbers as an array; everything else as it is."""
    plain = isinstance(values, list) and values and isinstance(values[0], numbers.Number)
    return np.asarray(values) if plain else values


def _has_one_shape(data):
    """Whether all batches surely have the same shape, but for their size.

    XLA compiles anew for every shape.
    """
    spec = getattr(data, "element_spec", None)
    if spec is None:
        return isinstance(data, tuple | list | dict) or hasattr(data, "shape")
    return all(None not in tuple(part.shape)[1:] for part in tree.flatten(spec))


def _first(batches):
    for batch in batches:
        return batch
    raise ValueError("The data hold no samples: they yielded no batch.")


def _gains_from_jit(model):
    """Whether XLA makes the model faster where Keras leaves it off.

    That is on CPUs, for matrix products with element-wise functions between them; convolutions
    and recurrent layers run slower.
    """
    if keras.backend.backend() != "tensorflow" or model.run_eagerly or _strategy(model):
        return False
    slower = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D, keras.layers.RNN)
    slower += (keras.layers.SeparableConv2D, keras.layers.DepthwiseConv2D)
    return all(
        layer.supports_jit and not isinstance(layer, slower) for layer in model._flatten_layers()
    )


def _strategy(model):
    """The TensorFlow distribution strategy that the model was made under, or None."""
    return getattr(model, "_distribute_strategy", None)


def _strategy_scope(model):
    strategy = _strategy(model)
    return contextlib.nullcontext() if strategy is None else strategy.scope()
