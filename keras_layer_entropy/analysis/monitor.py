"""EntropyMonitor: entropies of the layers while `fit` runs."""

import dataclasses
import functools
import numbers
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_layer_entropy import backend
from keras_layer_entropy.analysis.alerting import Alerting, WatchForNaN
from keras_layer_entropy.analysis.analyzer import EntropyAnalyzer
from keras_layer_entropy.analysis.live import LivePlot
from keras_layer_entropy.analysis.measurement import Measurement, Request
from keras_layer_entropy.analysis.profile import EntropyProfile
from keras_layer_entropy.analysis.summaries import Summaries
from keras_layer_entropy.backend import Data
from keras_layer_entropy.files import AnyPath
from keras_layer_entropy.measures.registry import MeasureChoice, get_measures
from keras_layer_entropy.measures.thresholds import Alert, Health, not_finite
from keras_layer_entropy.recording.fit_steps import RecordingFunction, fit_validates
from keras_layer_entropy.recording.labels import ClassChoice
from keras_layer_entropy.recording.layers import LayerChoice
from keras_layer_entropy.recording.outputs import OutputsRecorder
from keras_layer_entropy.recording.passes import Source, unmoved
from keras_layer_entropy.recording.recorder import Recorder


class EntropyMonitor(keras.callbacks.Callback):
    """Measures the layers of a model in every epoch of `fit`.

    Without `data` it costs no forward pass of its own: it records inside the validation pass that
    `fit` runs anyway or, without validation data, inside the training pass (where dropout is on
    and weights move). The entropies, normalised and averaged over the classes, go into the logs
    as `val_<layer>_entropy` or `<layer>_entropy` (other measures as `<layer>_<measure>`), where
    History, CSVLogger, TensorBoard and EarlyStopping find them: list this callback before those
    that read its keys. The model is left as it was found.

    Where it cannot measure (a `train_step` whose data are not `(x, y, sample_weight)`, labels that
    are no class, layers inside a loop, a loop that is not Keras's `fit`) it says so once, in a
    warning, and steps aside: the training goes on as without it. One thing it cannot foresee: a
    layer whose batch is not that of the labels (patches folded into it) in a model that is compiled
    with XLA or runs under a distribution strategy; with `num_classes=1` it is measured.

    Args:
        data: held-out data to measure on after each epoch, as for `analyze_model` (not a
            generator); None to record inside `fit`'s own passes (TensorFlow, PyTorch). The
            keys of such a measurement are `val_<layer>_entropy`.
        steps: number of batches of `data`, None for all; data that never end need it.
        layers, num_classes, classes, measures: as for `EntropyAnalyzer`.
        every: measure each `every`-th epoch only, counted like `validation_freq`.
        log_dir: folder for TensorBoard: scalars per layer and per class, the curve and the heat
            map; None for none. Needs the `tensorboard` package.
        alerts: whether the health of the layers is measured, too (`activation_health`, which goes
            into the logs where `measures` names it), and a line is printed for each thing that is
            unhealthy, again only where it gets worse; or the `measures.Health` with thresholds of
            one's own.
        stop_on: kinds of alerts that end the training, after the epoch: `"nan"`, `"collapse"`, ...;
            with `"nan"` it also ends at once where the loss of the training is not finite.
        plot: whether the entropies are drawn after each epoch, which they are in notebooks alone.

    Attributes:
        profiles: one `EntropyProfile` per measured epoch of the last `fit`.

    Raises:
        RuntimeError: without `data` on JAX.
        ValueError: bad arguments, at once, or when training begins: layers that there are not,
            data that cannot be read.

    Example:

    >>> import numpy as np
    >>> dense = keras.layers.Dense
    >>> model = keras.Sequential([dense(8, "relu", name="hidden"), dense(3, name="logits")])
    >>> model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    >>> x, y = np.random.normal(size=(90, 4)), np.arange(90) % 3
    >>> monitor = EntropyMonitor(data=(x, y))
    >>> history = model.fit(x, y, epochs=2, verbose=0, callbacks=[monitor])
    >>> sorted(history.history), [profile.epoch for profile in monitor.profiles]
    (['loss', 'val_hidden_entropy', 'val_logits_entropy'], [0, 1])
    """

    def __init__(
        self,
        data: Data | None = None,
        *,
        steps: int | None = None,
        layers: LayerChoice = None,
        num_classes: ClassChoice = None,
        classes: Sequence[str] | None = None,
        measures: MeasureChoice = ("activation_entropy",),
        every: int | numbers.Integral = 1,
        log_dir: AnyPath | None = None,
        alerts: bool | Health = False,
        stop_on: str | Collection[str] = (),
        plot: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(every, numbers.Integral) or every < 1:
            raise ValueError(f"every={every!r}; expected a positive int.")
        if _are_layers(data):
            raise ValueError(
                f"data is {data!r}, which are layers, not data: EntropyMonitor(layers={data!r})."
            )
        if hasattr(data, "__next__"):
            raise ValueError(
                f"data is a {type(data).__name__}, which can be read only once, but is needed in "
                "every epoch: pass arrays, a tf.data.Dataset or a PyDataset."
            )
        if data is None and not backend.records_inside_fit():
            raise RuntimeError(
                f"EntropyMonitor() records inside fit's own passes, which {backend.name()} does "
                "not allow: give it the data to measure on, EntropyMonitor(data=(x, y))."
            )
        if steps is not None and data is None:
            raise ValueError(f"steps={steps!r} without data: fit has steps of its own.")
        self._data = data
        self._steps = steps
        self._alerting = Alerting(alerts, stop_on)
        asked = get_measures(measures)
        self._logged = {measure.name for measure in asked}
        chosen = self._alerting.measured(asked)
        self._chosen = {
            "layers": layers, "num_classes": num_classes, "classes": classes, "measures": chosen,
        }  # fmt: skip
        if "nan" in self._alerting.stop_on:
            # Of its own, because Keras waits for each batch where a callback looks at its logs.
            self.on_train_batch_end = self._stop_where_the_loss_is_not_finite
        self._every = every
        self._log_dir = log_dir
        self._source: Any = None  # an `_OwnData` or `_InsideFit` while `fit` runs
        self._summaries: Summaries | None = None
        self._aside = False
        self._plots = plot
        self._plot: LivePlot | None = None
        self._epoch = 0
        self.profiles: list[EntropyProfile] = []

    @property
    def alerts(self) -> list[Alert]:
        """What was said of the health of layers in the last `fit`."""
        return self._alerting.given

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._close()  # an earlier fit ended with an exception
        self.profiles = []
        self._alerting.begin()
        self._aside = False
        if self._data is None:
            if self.model.jit_compile and not backend.steps_are_traced():
                self._step_aside(f"{backend.name()} compiles its steps (jit_compile=True).")
                return
            validates = fit_validates(self.model)
            if validates is None:
                self._step_aside("no fit of Keras is running, in whose passes it records.")
                return
            watches = validates and self._alerting.wanted
            source: Callable[..., Any] = functools.partial(
                _InsideFit, validates, watches, self._step_aside
            )
        else:
            source = functools.partial(_OwnData, self._data, self._steps)
        self._source = source(self.model, self._chosen)
        if self._log_dir is not None:
            self._summaries = Summaries(self._log_dir)
        self._plot = LivePlot() if self._plots else None

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch = epoch
        if self._source is None and not self._aside:
            self._step_aside("on_train_begin was not called.")
        if self._source is not None:
            self._source.begin_epoch(measured=(epoch + 1) % self._every == 0)

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        if self._source is not None:
            self._source.begin_validation()

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        if self._source is not None:
            self._source.end_validation(logs or {})

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        logs = {} if logs is None else logs
        if self._source is None:
            return
        try:
            if (found := self._source.not_finite()) is not None:
                path, batch = found
                self._end_if(self._alerting.say([not_finite(path, epoch, batch)]))
            profile = self._source.end_epoch(epoch, logs)
            if profile is not None:
                self._publish(profile, logs)
        except Exception as error:  # noqa: BLE001 - whatever it is, the training goes on
            self._step_aside(error)

    def _publish(self, profile: EntropyProfile, logs: dict[str, Any]) -> None:
        self.profiles.append(profile)
        logged = {name: x for name, x in profile.results.items() if name in self._logged}
        for name, result in logged.items():
            measure = profile.measures[name]
            found = {measure.log_name: result.mean, **result.columns(name)}
            for key, values in found.items():
                for layer, value in zip(profile.layers, values, strict=True):
                    if key == measure.log_name or np.isfinite(value):  # of a layer as a whole
                        logs[f"{self._source.prefix}{layer}_{key}"] = float(value)
        if self._summaries is not None:
            self._summaries.write(profile)
        if self._plot is not None:
            self._plot.show(self.profiles)
        self._end_if(self._alerting.of_profile(profile))

    def _end_if(self, ends: bool) -> None:
        if ends:
            self.model.stop_training = True

    def _stop_where_the_loss_is_not_finite(
        self, batch: int, logs: Mapping[str, Any] | None = None
    ) -> None:
        loss = float((logs or {}).get("loss", 0.0))
        if not np.isfinite(loss):
            self._end_if(self._alerting.say([not_finite("", self._epoch, batch + 1)]))

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self._close()

    def _step_aside(self, reason: object) -> None:
        """Says once why nothing is measured any more; the training goes on as without a monitor."""
        self._close()
        if self._aside:
            return
        self._aside = True
        advice = " With data of its own, EntropyMonitor(data=(x, y)), it needs no step of fit."
        warnings.warn(
            f"EntropyMonitor steps aside, and the training goes on without it: {reason}"
            + (advice if self._data is None else ""),
            stacklevel=2,
        )

    def _close(self) -> None:
        source, self._source = self._source, None
        summaries, self._summaries = self._summaries, None
        for open_part in (source, summaries):
            if open_part is not None:
                open_part.close()


class _OwnData:
    """Measures on data of its own after each epoch."""

    prefix = "val_"

    def __init__(
        self, data: Data, steps: int | None, model: keras.Model, chosen: Mapping[str, Any]
    ) -> None:
        Source(data, steps=steps)  # what cannot be read is said before the training
        self._data = data
        self._steps = steps
        self._analyzer = EntropyAnalyzer(model, **chosen)
        self._measured = False

    def begin_epoch(self, measured: bool) -> None:
        self._measured = measured

    def begin_validation(self) -> None:
        pass

    def end_validation(self, logs: Mapping[str, Any]) -> None:
        pass

    def not_finite(self) -> None:
        """No step is watched."""

    def end_epoch(self, epoch: int, logs: Mapping[str, Any]) -> EntropyProfile | None:
        if not self._measured:
            return None
        with unmoved(self._analyzer.model):  # the training goes on from the state that it left
            profile = self._analyzer.analyze(self._data, steps=self._steps, verbose=0)
        return dataclasses.replace(profile, epoch=epoch)

    def close(self) -> None:
        pass


class _InsideFit:
    """Records inside the validation pass of `fit` or, if it has none, inside the training pass."""

    def __init__(
        self,
        validates: bool,
        watches: bool,
        step_aside: Callable[[object], None],
        model: keras.Model,
        chosen: Mapping[str, Any],
    ) -> None:
        self._model = model
        self._validates = validates
        self.prefix = "val_" if validates else ""
        request = Request(model, **chosen)
        self._function = RecordingFunction(
            model,
            "test" if validates else "train",
            Recorder(model, request.recorded),
            functools.partial(Measurement, request),
            step_aside,
        )
        self._watch = (
            RecordingFunction(model, "train", OutputsRecorder(model), WatchForNaN, step_aside)
            if watches
            else None
        )
        self._measured = False
        self._metrics: dict[str, Any] | None = None

    def begin_epoch(self, measured: bool) -> None:
        self._measured = measured
        self._metrics = None
        if self._watch is not None:
            self._watch.recording = True
            if self._watch.measurement is not None:
                self._watch.measurement.reset()
        if measured and not self._validates:
            self._begin()

    def begin_validation(self) -> None:
        if not self._validates or not self._function.watch_validation():
            return
        if self._measured:
            self._begin()

    def end_validation(self, logs: Mapping[str, Any]) -> None:
        if self._function.recording:
            self._function.recording = False
            self._metrics = dict(logs)

    def end_epoch(self, epoch: int, logs: Mapping[str, Any]) -> EntropyProfile | None:
        if not self._validates:
            self._function.recording = False
            self._metrics = {k: v for k, v in logs.items() if not k.startswith("val_")}
        if not self._measured or self._metrics is None:  # validation_freq left this epoch out
            return None
        measurement = self._function.measurement
        if measurement is None or not self._function.stands:
            raise ValueError(
                "its steps could not be recorded (another fit of the model, or a compile, inside "
                "this one?)."
            )
        return measurement.profile(self._metrics, epoch)

    def not_finite(self) -> tuple[str, int] | None:
        """Layer and batch of the training in which there was first NaN or infinity, if any."""
        watched = self._watch and self._watch.measurement
        return watched.first(self._model) if watched else None

    def close(self) -> None:
        self._function.remove()
        if self._watch is not None:
            self._watch.remove()

    def _begin(self) -> None:
        self._function.recording = True
        if self._function.measurement is not None:
            self._function.measurement.reset()


def _are_layers(data: Data) -> bool:
    parts = data if isinstance(data, list | tuple) else [data]
    return any(isinstance(part, str | type | keras.Layer) for part in parts)
