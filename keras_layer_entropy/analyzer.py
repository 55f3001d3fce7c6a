"""Model + data -> EntropyProfile."""

import contextlib
import copy
import dataclasses
import itertools
import warnings

import keras
import numpy as np
from keras import ops, tree

from keras_layer_entropy.labels import find_labels
from keras_layer_entropy.measures.entropy import check_pattern, maximum_entropy
from keras_layer_entropy.probe import ActivationProbe
from keras_layer_entropy.profile import EntropyProfile
from keras_layer_entropy.statistics import MEASURES, LabelStatistic, check_measures

_MOST_STATE = 4 * 2**30  # bytes


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

    >>> keras.utils.set_random_seed(0)
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
            self._compile(jit=again and _gains_from_jit(self.model))
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
        except Exception:
            if not self._jit:
                raise
            # Perhaps XLA does not know one of the model's operations; if not, it fails again.
            self._compile(jit=False)
            return self._measure(keywords)
        return self._statistics.profile(metrics if self._pass.measures_model else {})

    def _prepare(self, x, y, sample_weight):
        """Builds everything on a batch, so that the pass itself only compiles and runs."""
        outputs, activations = self._probe.record(x)
        with _strategy_scope(self.model):
            self._statistics.build(activations, outputs, y)
            runner = _Pass(self._probe, self._statistics)
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


class ModelStatistics:
    """The statistics of every chosen layer of a model, and of the labels.

    Args: as for `EntropyAnalyzer`.
    """

    def __init__(
        self,
        model,
        num_classes=None,
        measures=("activation_entropy",),
        pattern="mean_then_softmax",
        normalization="log",
    ):
        check_pattern(pattern)
        maximum_entropy(2, normalization)
        self._model = model
        self._num_classes = num_classes
        self._measures = check_measures(measures)
        self._pattern = pattern
        self._normalization = normalization
        self._labels = None
        self._labelled = None
        self._label_statistic = None
        self._rows = []  # one per layer: (Activation without tensors, {measure: statistic})

    @property
    def built(self):
        """Whether the layers and classes are known."""
        return self._labels is not None

    @property
    def metrics(self):
        """All statistics, as Keras metrics."""
        return [self._label_statistic, *(s for _, row in self._rows for s in row.values())]

    def build(self, activations, outputs, y):
        """Makes the state for layers and classes as seen in a first batch."""
        self._labelled = y is not None
        self._labels = find_labels(
            y,
            outputs,
            self._num_classes,
            loss=self._model.loss if self._model.compiled else None,
            output_names=getattr(self._model, "output_names", None),
        )
        # Two float32 for each class and unit.
        size = 8 * self._labels.num_classes * sum(a.units for a in activations)
        if size > _MOST_STATE:
            raise ValueError(
                f"{self._labels.num_classes} classes and {sum(a.units for a in activations)} units "
                f"need {size / 2**30:.1f} GiB: choose fewer layers with layers=, or pass "
                "num_classes=1 to take all samples for one class."
            )
        self._label_statistic = LabelStatistic(self._labels.num_classes)
        self._rows = [
            (
                dataclasses.replace(a, output=None, pre_activation=None, mask=None),
                {
                    measure: MEASURES[measure](
                        a.units,
                        self._labels.num_classes,
                        self._pattern,
                        self._normalization,
                        name=f"{a.path}_{measure}",
                    )
                    for measure in self._measures
                },
            )
            for a in activations
        ]

    def update(self, features, y, sample_weight):
        """Adds a batch: `features` is `Activation.features()` of each layer."""
        if len(features) != len(self._rows):
            raise ValueError(
                f"{len(features)} layer calls were recorded in this batch and {len(self._rows)} "
                "in the first: a model whose layers change from batch to batch cannot be measured."
            )
        if (y is None) == self._labelled:
            raise ValueError(
                f"The data have {'no ' if y is None else ''}labels, unlike those measured first: "
                "make another EntropyAnalyzer for them."
            )
        membership, label, misfit = self._labels.membership(y, sample_weight)
        if membership is None:
            membership = ops.ones((ops.shape(features[0]["pattern"])[0], 1))
        self._label_statistic.update_state(membership, label, misfit)
        for tensors, (_, row) in zip(features, self._rows, strict=True):
            for statistic in row.values():
                statistic.update_state(tensors[statistic.reads], membership, tensors.get("mask"))

    def reset(self):
        """Forgets what was accumulated."""
        for statistic in self.metrics:
            statistic.reset_state()

    def profile(self, metrics=None, epoch=None):
        """What was accumulated, as an `EntropyProfile`; errors and warnings about the data."""
        count, misfits, example = self._label_statistic.result()
        if misfits:
            raise ValueError(
                f"{misfits} labels are no class 0..{len(count) - 1}"
                + (f", for example {example:g}" if example is not None else "")
                + ": pass num_classes= if there are more classes, data without y if the labels "
                "are no classes, or a sample_weight of 0 for samples to leave out."
            )
        if not count.any():
            raise ValueError("The data hold no samples: nothing was measured.")
        names = ("all",) if self._labels.kind == "none" else tuple(map(str, range(len(count))))
        profile = EntropyProfile(
            layers=[a.path for a, _ in self._rows],
            units=[s.units for s in self._first_of_each_layer()],
            outputs=[a.is_output for a, _ in self._rows],
            classes=names,
            count=count,
            normalizer=[s.normalizer for s in self._first_of_each_layer()],
            values={m: [row[m].result() for _, row in self._rows] for m in self._measures},
            metrics=dict(metrics or {}),
            epoch=epoch,
            settings={
                "pattern": self._pattern,
                "normalization": getattr(self._normalization, "__name__", self._normalization),
            },
        )
        self._warn(profile)
        return profile

    def _first_of_each_layer(self):
        return [next(iter(row.values())) for _, row in self._rows]

    def _warn(self, profile):
        absent = [name for name, n in zip(profile.classes, profile.count, strict=True) if not n]
        if absent:
            warnings.warn(
                f"No sample belongs to {len(absent)} of {len(profile.classes)} classes "
                f"({_some(absent)}): their entropies are NaN.",
                stacklevel=4,
            )
        for activation, row in self._rows:
            bad = np.any([statistic.not_finite() for statistic in row.values()], axis=0)
            if bad.any():
                names = [profile.classes[i] for i in np.flatnonzero(bad)]
                warnings.warn(
                    f"Layer {activation.path!r} has NaN or infinite activations for class "
                    f"{_some(names)}: their entropies are NaN. Look at the weights and inputs of "
                    "this layer and of those before it.",
                    stacklevel=4,
                )


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


@contextlib.contextmanager
def untrained(model, seed=0):
    """Inside the block every layer of `model` that learns has fresh weights; afterwards its own.

    Layers without trainable weights (an adapted `Normalization`, say) stay as they are.

    Args:
        model: a built model.
        seed: seed of the initial weights.

    Raises:
        ValueError: a layer that cannot be made afresh from its configuration.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> before = model.get_weights()
    >>> with untrained(model, seed=1):
    ...     bool((model.get_weights()[0] != before[0]).all())
    True
    >>> bool((model.get_weights()[0] == before[0]).all())
    True
    """
    random = np.random.default_rng(seed)
    fresh = {}
    for layer in model._flatten_layers():
        if layer._trainable_variables:
            for variable, value in zip(
                _own_variables(layer), _fresh_values(layer, random), strict=True
            ):
                fresh[id(variable)] = (variable, value)
    before = [(v, ops.convert_to_numpy(v)) for v, _ in fresh.values()]
    try:
        for variable, value in fresh.values():
            variable.assign(value)
        yield
    finally:
        for variable, value in before:
            variable.assign(value)


def _fresh_values(layer, random):
    """Initial values of the layer's own variables, from a twin made from its configuration."""
    try:
        config = _seeded(copy.deepcopy(layer.get_config()), random)
        twin = type(layer).from_config({**config, "trainable": True})
        twin.build_from_config(layer.get_build_config())
        values = [ops.convert_to_numpy(variable) for variable in _own_variables(twin)]
        shapes = [variable.shape for variable in _own_variables(layer)]
        if [value.shape for value in values] != [tuple(shape) for shape in shapes]:
            raise ValueError("its weights have other shapes than those of a fresh twin")
    except Exception as error:
        raise ValueError(
            f"The untrained twin needs a fresh {type(layer).__name__} {layer.name!r}, but it "
            f"cannot be made from its get_config(): {error}. Implement get_config() and build(), "
            "or measure without the baseline."
        ) from error
    return values


def _own_variables(layer):
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def _seeded(config, random):
    """The configuration with a new seed for everything random in it."""
    if isinstance(config, dict):
        if "seed" in config:
            config["seed"] = int(random.integers(2**31))
        for value in config.values():
            _seeded(value, random)
    elif isinstance(config, list | tuple):
        for value in config:
            _seeded(value, random)
    return config


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
        return {"x": (b if isinstance(b, tuple) else (b,) for b in batches)}, first, False
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    batch = tree.map_structure(
        lambda array: None if array is None else array[:batch_size], (x, y, sample_weight)
    )
    if any(len(array) == 0 for array in tree.flatten(batch[0])):
        raise ValueError("The data hold no samples: x is empty.")
    return dict(x=x, y=y, sample_weight=sample_weight, batch_size=batch_size), [batch], True


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


def _some(names, most=10):
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
