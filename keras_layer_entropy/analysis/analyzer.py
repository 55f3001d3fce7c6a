"""Model + data -> EntropyProfile."""

import contextlib
import dataclasses
import hashlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_layer_entropy.analysis.measurement import Measurement, Request
from keras_layer_entropy.analysis.partial import PartialAnalysis
from keras_layer_entropy.analysis.profile import EntropyProfile
from keras_layer_entropy.analysis.unit_profile import UnitProfile
from keras_layer_entropy.backend import Data, Tensor, strategy, strategy_scope
from keras_layer_entropy.measures.feature_entropy import FeatureEntropy
from keras_layer_entropy.measures.measure import MOST_SAMPLES
from keras_layer_entropy.measures.registry import MeasureChoice
from keras_layer_entropy.measures.states import arrays_of, set_arrays
from keras_layer_entropy.measures.unit_information import UnitInformation
from keras_layer_entropy.recording.labels import ClassChoice
from keras_layer_entropy.recording.layers import LayerChoice
from keras_layer_entropy.recording.passes import Source, StreamingPass, rehearsal
from keras_layer_entropy.recording.probe import ActivationProbe
from keras_layer_entropy.recording.untrained import untrained
from keras_layer_entropy.recording.watching import alone_with


def analyze_model(
    model: keras.Model,
    data: Data,
    *,
    layers: LayerChoice = None,
    num_classes: ClassChoice = None,
    classes: Sequence[str] | None = None,
    measures: MeasureChoice = ("activation_entropy",),
    batch_size: int | None = 256,
    steps: int | None = None,
    baseline: bool = False,
    seed: int = 0,
    verbose: str | int = "auto",
) -> EntropyProfile:
    """Measures the layers of a model on data, class by class, in one forward pass.

    Args:
        model: any Keras model. Its weights are as before afterwards; its own metrics are reset,
            as by `model.evaluate`.
        data: `(x, y)` or `(x, y, sample_weight)` arrays, inputs alone, a `tf.data.Dataset`, a
            `keras.utils.PyDataset` or a generator of batches, as for `model.evaluate`.
        layers, num_classes, classes, measures: as for `EntropyAnalyzer`.
        batch_size: batch size for arrays.
        steps: number of batches, None for all.
        baseline: also measure the same network freshly initialised, into `profile.baseline`; the
            data are read twice.
        seed: seed of that initialisation.
        verbose: as in `model.evaluate`.

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
    analyzer = EntropyAnalyzer(
        model, layers=layers, num_classes=num_classes, classes=classes, measures=measures
    )
    return analyzer.analyze(
        data, batch_size=batch_size, steps=steps, baseline=baseline, seed=seed, verbose=verbose
    )


def analyze_units(
    model: keras.Model,
    data: Data,
    *,
    layers: LayerChoice = None,
    num_classes: ClassChoice = None,
    classes: Sequence[str] | None = None,
    estimator: str = "quantile",
    samples: int = MOST_SAMPLES,
    variance: float = 0.1,
    batch_size: int | None = 256,
    steps: int | None = None,
    verbose: str | int = "auto",
) -> tuple[UnitProfile, ...]:
    """Measures every unit of the layers of a model on data, in one forward pass.

    The same as `analyze_model` with the measures `unit_information` and, where there are maps,
    `feature_entropy`, and `units` of the profile.

    Args:
        model, data, num_classes, classes, batch_size, steps, verbose: as for `analyze_model`.
        layers: as for `ActivationProbe`; None for every Dense layer and convolution.
        estimator, samples, variance: as for `measures.UnitInformation`.

    Returns:
        Tuple of `UnitProfile`, one per layer in the order of the forward pass.

    Raises:
        ValueError: as `analyze_model`; no labels, or labels that stand for positions.

    Source: Fang et al. 2018; Zhao & Zhang 2022.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> model = keras.Sequential([
    ...     keras.layers.Conv2D(4, 3, activation="relu", name="conv"),
    ...     keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3, name="output")])
    >>> x, y = np.random.normal(size=(90, 8, 8, 1)), np.arange(90) % 3
    >>> conv, output = analyze_units(model, (x, y), verbose=0)
    >>> conv.layer, conv.information_labels.shape, conv.information_per_class.shape
    ('conv', (4,), (4, 3))
    """
    measures = [UnitInformation(estimator, samples, variance), FeatureEntropy()]
    analyzer = EntropyAnalyzer(
        model, layers=layers, num_classes=num_classes, classes=classes, measures=measures
    )
    analyzer.measures_model = False
    with warnings.catch_warnings():  # there may be no maps
        warnings.filterwarnings("ignore", "None of the layers .* has a feature_entropy")
        profile = analyzer.analyze(data, batch_size=batch_size, steps=steps, verbose=verbose)
    return tuple(profile.units.values())


class EntropyAnalyzer:
    """Measures a model again and again without building and compiling again.

    Args:
        model: any Keras model.
        layers: as for `ActivationProbe`; None for those that the measures are of: every `Dense`,
            and every `Conv2D` where feature_entropy is among the measures (these without entropies
            of their own, unless there is no Dense layer).
        num_classes: number of classes, None to take it from the model's output; 1 for one class
            of everything; `{key: number or None}` to choose whose labels count where there are
            several outputs.
        classes: names of the classes, in order; None for those that the data bring (`class_names`,
            as of `keras.utils.image_dataset_from_directory`), or their numbers.
        measures: names out of `measures.MEASURES`, objects such as `measures.LogDet(beta=1.0)`, or
            a list of these; or name -> options, such as `{"logdet": {"beta": 1.0}}`.

    Attributes:
        measures_model: whether the model's own loss and metrics are measured, too, where it is
            compiled.

    Raises:
        ValueError: no such layer or measure, or two measures of one name.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> from keras_layer_entropy.measures import ActivationEntropy
    >>> model = keras.Sequential([keras.layers.Dense(8, "relu"), keras.layers.Dense(3)])
    >>> per_sample = ActivationEntropy(pattern="per_sample", name="per_sample")
    >>> analyzer = EntropyAnalyzer(model, measures=["state_entropy", per_sample])
    >>> x, y = np.random.normal(size=(90, 4)), np.arange(90) % 3
    >>> before, after = (analyzer.analyze((scale * x, y), verbose=0) for scale in (1.0, 3.0))
    >>> sorted(after.results), after["state_entropy"].unit
    (['per_sample', 'state_entropy'], 'bits')
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        layers: LayerChoice = None,
        num_classes: ClassChoice = None,
        classes: Sequence[str] | None = None,
        measures: MeasureChoice = ("activation_entropy",),
    ) -> None:
        self.model = model
        self.measures_model = True
        self._request = Request(model, layers, num_classes, measures, classes)
        with strategy_scope(model):
            self._probe = ActivationProbe(model, self._request.recorded)
        self._pass: Any = None  # a `_LayerPass`, from the first data on

    def analyze(
        self,
        data: Data,
        *,
        batch_size: int | None = 256,
        steps: int | None = None,
        baseline: bool = False,
        seed: int = 0,
        verbose: str | int = "auto",
    ) -> EntropyProfile:
        """Measures the model on data; arguments, result and errors as for `analyze_model`."""
        source = Source(data, batch_size, steps)
        if baseline and not source.repeatable:
            raise ValueError(
                f"baseline=True reads the data twice, but a {type(data).__name__} can be read only "
                "once: pass arrays, a tf.data.Dataset or a PyDataset, or measure without it."
            )
        with alone_with(self.model):  # the pass moves its metrics, the baseline its weights
            return self._analyze(source, baseline, seed, verbose)

    def analyze_part(
        self,
        data: Data,
        *,
        start: int = 0,
        batch_size: int | None = 256,
        steps: int | None = None,
        verbose: str | int = "auto",
    ) -> PartialAnalysis:
        """Measures the model on a part of the data, to be joined with others.

        Args:
            data, batch_size, steps, verbose: as for `analyze_model`; what is not counted, layers
                that all parts have, is taken from the first batch.
            start: the number of the part's first sample among all samples. Measures that compare
                single samples keep the same ones, however the data are cut, where each sample has
                its own number.

        Returns:
            `PartialAnalysis`.

        Raises:
            ValueError: as `analyze_model`; a state of a measure or metric that does not add up.
        """
        source = Source(data, batch_size, steps)
        with alone_with(self.model):
            self._prepare_once(source)
            self._pass.measurement.start_at(start)
            try:
                self._pass.run(source, verbose)
            finally:
                self._pass.measurement.start_at(0)
            return PartialAnalysis(self._described(), arrays_of(self._pass.metrics))

    def alone(self) -> contextlib.AbstractContextManager[None]:
        """Inside the block no other thread measures the model, or changes it for a while."""
        return alone_with(self.model)

    def profile_of(
        self, part: PartialAnalysis, data: Data | None = None, again: bool = False
    ) -> EntropyProfile:
        """The profile of what was measured in parts, after all of them were joined.

        Args:
            part: `PartialAnalysis`.
            data: data of the same form, of which no more than the first batch is looked at; None
                where this analyzer has measured some.
            again: whether a profile of the same data has said already what is missing in them.

        Raises:
            ValueError: another model, or other layers, classes or measures; no data; as
                `analyze_model` where labels are no class or there are no samples.
        """
        with alone_with(self.model):
            if self._pass is None:
                if data is None:
                    raise ValueError(
                        "This analyzer has seen no data yet: pass some of the same form, "
                        "profile_of(part, data=(x, y))."
                    )
                self._prepare_once(Source(data, steps=1))
            self._pass.make_ready()
            part.check_like(self._described())
            set_arrays(self._pass.metrics, part.arrays)
            found = self._pass.get_metrics_result() if self._pass.measures_model else {}
            metrics = {name: float(value) for name, value in found.items()}
            return self._pass.measurement.profile(metrics, again=again)

    def _described(self) -> dict[str, Any]:
        """What is measured of which model, JSON."""
        digest = hashlib.sha256()
        for variable in self.model.weights:
            value = np.ascontiguousarray(ops.convert_to_numpy(variable))
            digest.update(f"{value.dtype}{value.shape}".encode())
            digest.update(value.view(np.uint8).data if value.size else b"")
        own = set(map(id, self._pass.measurement.metrics))
        metrics = [metric.name for metric in self._pass.metrics if id(metric) not in own]
        described = self._pass.measurement.described()
        return {"weights": digest.hexdigest(), **described, "metrics": metrics}

    def _prepare_once(self, source: Source) -> None:
        if self._pass is None:
            self._pass = self._prepare(*source.first())

    def _analyze(
        self, source: Source, baseline: bool, seed: int, verbose: str | int
    ) -> EntropyProfile:
        self._prepare_once(source)
        profile = self._measure(source, verbose)
        if baseline:
            with untrained(self.model, seed):
                twin = self._measure(source, verbose=0, again=True)
            settings = {**profile.settings, "baseline_seed": seed}
            profile = dataclasses.replace(profile, baseline=twin, settings=settings)
        return profile

    def _measure(self, source: Source, verbose: str | int, again: bool = False) -> EntropyProfile:
        measurement = self._pass.measurement
        measurement.reset()
        metrics = self._pass.run(source, verbose)
        profile = measurement.profile(metrics if self._pass.measures_model else {}, again=again)
        names = source.class_names
        if self._request.classes is None and names and len(names) == len(profile.classes) > 1:
            return profile.with_classes([str(name) for name in names])
        return profile

    def _prepare(self, x: Any, y: Any, sample_weight: Any) -> "_LayerPass":
        """Builds everything on a batch, so that the pass itself only compiles and runs."""
        with rehearsal(self.model):
            outputs, activations = self._probe.record(x)
            measurable = self._model_can_be_measured(x, y, outputs, sample_weight)
        with strategy_scope(self.model):
            measurement = Measurement(self._request, activations, outputs, y, x)
            runner = _LayerPass(self._probe, measurement, measurable)
        if strategy(self.model) is None:  # a first try, whose errors are easier to read
            measurement.update([a.features() for a in activations], x, y, sample_weight)
            measurement.check_labels()
        return runner

    def _model_can_be_measured(self, x: Any, y: Any, outputs: Any, sample_weight: Any) -> bool:
        """Whether the model's own loss and metrics can be computed from these data."""
        if not self.measures_model or not self.model.compiled or y is None:
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
    """One forward pass for a measurement and the model's own loss and metrics."""

    def __init__(
        self, probe: ActivationProbe, measurement: Measurement, measures_model: bool
    ) -> None:
        super().__init__(probe.model, measurement.metrics, name="entropy_analyzer")
        self.probe = probe
        self.measurement = measurement
        self.measures_model = measures_model

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        return [*super().metrics, *(self.probe.model.metrics if self.measures_model else [])]

    def call(self, inputs: Any, training: bool = False) -> dict[str, Any]:
        outputs, activations = self.probe.record(inputs)
        features = [a.features() for a in activations]
        return {"outputs": outputs, "features": features, "inputs": inputs}

    def update(self, seen: Mapping[str, Any], y: Any, sample_weight: Any) -> None:
        self.measurement.update(seen["features"], seen["inputs"], y, sample_weight)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = False,
    ) -> Tensor:
        if not self.measures_model:
            return super().compute_loss()
        return self.probe.model.compute_loss(
            x=x, y=y, y_pred=y_pred["outputs"], sample_weight=sample_weight, training=False
        )

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Any]:
        if self.measures_model:
            self.probe.model.compute_metrics(x, y, y_pred["outputs"], sample_weight)
        return super().compute_metrics(x, y, y_pred, sample_weight)

    def get_metrics_result(self) -> dict[str, Any]:
        models = self.probe.model.get_metrics_result() if self.measures_model else {}
        return {**models, **super().get_metrics_result()}
