"""Model + data -> EntropyProfile."""

import dataclasses
import warnings

from keras_layer_entropy.analysis.measurement import ModelStatistics, usual_layers
from keras_layer_entropy.backend import strategy, strategy_scope
from keras_layer_entropy.recording.passes import (
    Source,
    StreamingPass,
    rehearsal,
)
from keras_layer_entropy.recording.probe import ActivationProbe
from keras_layer_entropy.recording.untrained import untrained
from keras_layer_entropy.recording.watching import alone_with


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
        **options: `layers`, `num_classes`, `measures`, `pattern`, `normalization`,
            `keep_patterns`, as for `EntropyAnalyzer`.

    Returns:
        `EntropyProfile`.

    Raises:
        ValueError: no such layer, empty data, labels that are no class, unknown options.

    Example:

    >>> import keras
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
        layers: as for `ActivationProbe`; None for every `Dense`, and every `Conv2D` where
            feature_entropy is among the measures (these without activation, instability and state
            entropy, unless there is no Dense layer).
        num_classes: number of classes, None to take it from the model's output; 1 for one class
            of everything; `{key: number or None}` to choose whose labels count where there are
            several outputs.
        measures: names out of `measures.catalogue.DESCRIPTIONS`, or name -> options, such as
            `{"activation_entropy": None, "logdet": {"beta": 1.0}}`.
        pattern, normalization: as for `measures.entropy.activation_entropy`.
        keep_patterns: keep the activation pattern of every class in `profile.patterns`; it takes
            classes x units numbers for each layer.

    Raises:
        ValueError: no such layer, measure, pattern or normalization.

    Example:

    >>> import keras
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
        keep_patterns=False,
    ):
        self.model = model
        self._statistics = ModelStatistics(
            model,
            num_classes,
            measures,
            pattern,
            normalization,
            keep_patterns,
            layers_chosen=layers is not None,
        )
        with strategy_scope(model):
            self._probe = ActivationProbe(model, usual_layers(layers, measures))
        self._pass = None

    def analyze(self, data, *, batch_size=256, steps=None, baseline=False, seed=0, verbose="auto"):
        """Measures the model on data; arguments, result and errors as for `analyze_model`."""
        source = Source(data, batch_size, steps)
        if baseline and not source.repeatable:
            raise ValueError(
                f"baseline=True reads the data twice, but a {type(data).__name__} can be read only "
                "once: pass arrays, a tf.data.Dataset or a PyDataset, or measure without it."
            )
        with alone_with(self.model):  # the pass moves its metrics, the baseline its weights
            return self._analyze(source, baseline, seed, verbose)

    def _analyze(self, source, baseline, seed, verbose):
        if self._pass is None:
            self._pass = self._prepare(*source.first())
        profile = self._measure(source, verbose)
        if baseline:
            with untrained(self.model, seed):
                twin = self._measure(source, verbose=0, again=True)
            settings = {**profile.settings, "baseline_seed": seed}
            profile = dataclasses.replace(profile, baseline=twin, settings=settings)
        return profile

    def _measure(self, source, verbose, again=False):
        self._statistics.reset()
        metrics = self._pass.run(source, verbose)
        return self._statistics.profile(metrics if self._pass.measures_model else {}, again=again)

    def _prepare(self, x, y, sample_weight):
        """Builds everything on a batch, so that the pass itself only compiles and runs."""
        with rehearsal(self.model):
            outputs, activations = self._probe.record(x)
            measurable = self._model_can_be_measured(x, y, outputs, sample_weight)
        with strategy_scope(self.model):
            self._statistics.build(activations, outputs, y, x)
            runner = _LayerPass(self._probe, self._statistics)
        if strategy(self.model) is None:  # a first try, whose errors are easier to read
            self._statistics.update([a.features() for a in activations], x, y, sample_weight)
            self._statistics.check_labels()
        runner.measures_model = measurable
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


class _LayerPass(StreamingPass):
    """One forward pass for the statistics of the layers and the model's own loss and metrics."""

    def __init__(self, probe, statistics):
        super().__init__(probe.model, statistics.metrics, name="entropy_analyzer")
        self.probe = probe
        self._model_statistics = statistics
        self.measures_model = False

    @property
    def metrics(self):
        return [*super().metrics, *(self.probe.model.metrics if self.measures_model else [])]

    def call(self, inputs, training=False):
        outputs, activations = self.probe.record(inputs)
        features = [a.features() for a in activations]
        return {"outputs": outputs, "features": features, "inputs": inputs}

    def update(self, seen, y, sample_weight):
        self._model_statistics.update(seen["features"], seen["inputs"], y, sample_weight)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=False):
        if not self.measures_model:
            return super().compute_loss()
        return self.probe.model.compute_loss(
            x=x, y=y, y_pred=y_pred["outputs"], sample_weight=sample_weight, training=False
        )

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        if self.measures_model:
            self.probe.model.compute_metrics(x, y, y_pred["outputs"], sample_weight)
        return super().compute_metrics(x, y, y_pred, sample_weight)

    def get_metrics_result(self):
        models = self.probe.model.get_metrics_result() if self.measures_model else {}
        return {**models, **super().get_metrics_result()}
