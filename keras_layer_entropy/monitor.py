"""EntropyMonitor: entropies of the layers while `fit` runs."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import inspect
import numbers
import sys
import types
import warnings
import weakref

import keras

from keras_layer_entropy import plots
from keras_layer_entropy.analyzer import EntropyAnalyzer
from keras_layer_entropy.measures.catalogue import check_measures
from keras_layer_entropy.model_statistics import ModelStatistics, usual_layers
from keras_layer_entropy.probe import Recorder, build, replaced_attributes
from keras_layer_entropy.streaming import Source, rehearsal, unmoved


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
            generator); None to record inside `fit`'s own passes (TensorFlow backend only). The
            keys of such a measurement are `val_<layer>_entropy`.
        steps: number of batches of `data`, None for all; data that never end need it.
        layers, num_classes, measures: as for `EntropyAnalyzer`.
        every: measure each `every`-th epoch only, counted like `validation_freq`.
        log_dir: folder for TensorBoard: scalars per layer and per class, the curve and the heat
            map; None for none. Needs the `tensorboard` package.

    Attributes:
        profiles: one `EntropyProfile` per measured epoch of the last `fit`.

    Raises:
        RuntimeError: without `data` on another backend than TensorFlow.
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
        data=None,
        *,
        steps=None,
        layers=None,
        num_classes=None,
        measures=("activation_entropy",),
        every=1,
        log_dir=None,
    ):
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
        if data is None and keras.backend.backend() != "tensorflow":
            raise RuntimeError(
                "EntropyMonitor() records inside fit's own passes, which only the TensorFlow "
                f"backend allows; on {keras.backend.backend()} give it the data to measure on: "
                "EntropyMonitor(data=(x, y))."
            )
        if steps is not None and data is None:
            raise ValueError(f"steps={steps!r} without data: fit has steps of its own.")
        self._data = data
        self._steps = steps
        self._layers = layers
        self._options = {"num_classes": num_classes, "measures": check_measures(measures)}
        self._every = every
        self._log_dir = log_dir
        self._source = None
        self._summaries = None
        self._aside = False
        self.profiles = []

    def on_train_begin(self, logs=None):
        self._close()  # an earlier fit ended with an exception
        self.profiles = []
        self._aside = False
        if self._data is None:
            validates = _fit_validates(self.model)
            if validates is None:
                self._step_aside("no fit of Keras is running, in whose passes it records.")
                return
            source = functools.partial(_FitPass, validates, self._step_aside)
        else:
            source = functools.partial(_OwnPass, self._data, self._steps)
        self._source = source(self.model, self._layers, self._options)
        if self._log_dir is not None:
            self._summaries = _Summaries(self._log_dir)

    def on_epoch_begin(self, epoch, logs=None):
        if self._source is None and not self._aside:
            self._step_aside("on_train_begin was not called.")
        if self._source is not None:
            self._source.begin_epoch(measured=(epoch + 1) % self._every == 0)

    def on_test_begin(self, logs=None):
        if self._source is not None:
            self._source.begin_validation()

    def on_test_end(self, logs=None):
        if self._source is not None:
            self._source.end_validation(logs or {})

    def on_epoch_end(self, epoch, logs=None):
        logs = {} if logs is None else logs
        if self._source is None:
            return
        try:
            profile = self._source.end_epoch(epoch, logs)
            if profile is not None:
                self._publish(profile, logs)
        except Exception as error:  # noqa: BLE001 - whatever it is, the training goes on
            self._step_aside(error)

    def _publish(self, profile, logs):
        self.profiles.append(profile)
        for measure in profile.values:
            name = measure.removeprefix("activation_")
            for layer, value in zip(profile.layers, profile.mean_of(measure), strict=True):
                logs[f"{self._source.prefix}{layer}_{name}"] = float(value)
        for name, values in profile.layer_values.items():
            for layer, value in zip(profile.layers, values, strict=True):
                logs[f"{self._source.prefix}{layer}_{name}"] = float(value)
        if self._summaries is not None:
            self._summaries.write(profile)

    def on_train_end(self, logs=None):
        self._close()

    def _step_aside(self, reason):
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

    def _close(self):
        source, self._source = self._source, None
        summaries, self._summaries = self._summaries, None
        for open_part in (source, summaries):
            if open_part is not None:
                open_part.close()


class _OwnPass:
    """Measures on data of its own after each epoch."""

    prefix = "val_"

    def __init__(self, data, steps, model, layers, options):
        Source(data, steps=steps)  # what cannot be read is said before the training
        self._data = data
        self._steps = steps
        self._analyzer = EntropyAnalyzer(model, layers, **options)
        self._measured = False

    def begin_epoch(self, measured):
        self._measured = measured

    def begin_validation(self):
        pass

    def end_validation(self, logs):
        pass

    def end_epoch(self, epoch, logs):
        if not self._measured:
            return None
        with unmoved(self._analyzer.model):  # the training goes on from the state that it left
            profile = self._analyzer.analyze(self._data, steps=self._steps, verbose=0)
        return dataclasses.replace(profile, epoch=epoch)

    def close(self):
        pass


class _FitPass:
    """Records inside the validation pass of `fit` or, if it has none, inside the training pass."""

    def __init__(self, validates, step_aside, model, layers, options):
        self._model = model
        self._validates = validates
        self.prefix = "val_" if validates else ""
        self._statistics = ModelStatistics(model, **options, layers_chosen=layers is not None)
        self._function = _RecordingFunction(
            model,
            "test" if validates else "train",
            Recorder(model, usual_layers(layers, options["measures"])),
            self._statistics,
            step_aside,
        )
        self._measured = False
        self._metrics = None

    def begin_epoch(self, measured):
        self._measured = measured
        self._metrics = None
        if measured and not self._validates:
            self._begin()

    def begin_validation(self):
        epoch_iterator = getattr(self._model, "_eval_epoch_iterator", None)
        if not self._validates or epoch_iterator is None:  # an `evaluate` that lists the monitor
            return
        self._function.watch(epoch_iterator)
        if self._measured:
            self._begin()

    def end_validation(self, logs):
        if self._function.recording:
            self._function.recording = False
            self._metrics = dict(logs)

    def end_epoch(self, epoch, logs):
        if not self._validates:
            self._function.recording = False
            self._metrics = {k: v for k, v in logs.items() if not k.startswith("val_")}
        if not self._measured or self._metrics is None:  # validation_freq left this epoch out
            return None
        if not (self._statistics.built and self._function.stands):
            raise ValueError(
                "its steps could not be recorded (another fit of the model, or a compile, inside "
                "this one?)."
            )
        return self._statistics.profile(self._metrics, epoch)

    def close(self):
        self._function.remove()

    def _begin(self):
        self._function.recording = True
        if self._statistics.built:
            self._statistics.reset()


class _RecordingFunction:
    """Stands in for `model.train_function` or `test_function` and records when it is told to.

    `fit` looks the function up at every step, so that no other attribute of the model is touched,
    and what stood there comes back when training ends or a step fails. What other callbacks run
    between the steps is not recorded: it comes with another iterator. Where something else in `fit`
    fails no callback is told: then this gives way when it is called from outside of `fit`, or from
    the next one, which brings a new History.
    """

    def __init__(self, model, kind, recorder, statistics, step_aside):
        self._model = model
        self._name = f"{kind}_function"
        self._history = getattr(model, "history", None)
        standing = getattr(model, self._name)
        if isinstance(standing, _RecordingFunction):
            if standing._history is self._history:
                raise ValueError(
                    "Two EntropyMonitors without data in one fit: give all layers and measures to "
                    "one of them, or data of its own to the other."
                )
            standing.remove()
        make = getattr(model, f"make_{kind}_function")
        make()  # if Keras has not made it yet
        self._plain = getattr(model, self._name)
        step = _recording_step(getattr(model, f"{kind}_step"), recorder, statistics, step_aside)
        with replaced_attributes(model, {f"{kind}_step": step}):
            make(force=True)
        self._recorded = getattr(model, self._name)
        setattr(model, self._name, self)
        self._iterators = None if kind == "train" else _Iterators()
        self.recording = False

    def watch(self, epoch_iterator):
        """Tells the iterators of Keras's `epoch_iterator` from those of other passes."""
        self._iterators.watch(epoch_iterator)

    def __call__(self, iterator):
        known = getattr(self._model, "history", None) is self._history
        if known and self._is_of_fit(iterator):
            return self._record(iterator) if self.recording else self._plain(iterator)
        if not known or _fit_frame() is None:
            self.remove()
        return self._plain(iterator)

    def _record(self, iterator):
        try:
            return self._recorded(iterator)
        except BaseException as error:
            if type(error).__name__ not in ("StopIteration", "OutOfRangeError"):  # end of data
                self.remove()
            raise

    def _is_of_fit(self, iterator):
        """Whether a step is one of `fit`'s own; `train_on_batch` comes with a generator."""
        if self._iterators is None:
            return not isinstance(iterator, types.GeneratorType)
        return self._iterators.made(iterator)

    @property
    def stands(self):
        """Whether `fit` calls this."""
        return getattr(self._model, self._name) is self

    def remove(self):
        if self.stands:
            setattr(self._model, self._name, self._plain)


class _Iterators:
    """Knows the iterators that an epoch iterator of Keras makes, and keeps none of them alive."""

    def __init__(self):
        self._watched = None
        self._latest = None

    def watch(self, epoch_iterator):
        if self._watched is not None and self._watched() is epoch_iterator:
            return
        watched = self._watched = weakref.ref(epoch_iterator)
        datasets = type(epoch_iterator)._get_iterator
        # An attribute of a helper that fit makes for itself and throws away; without a circle, so
        # that it goes, with its iterators, when fit lets go of it.
        epoch_iterator._get_iterator = lambda: _Noted(datasets(watched()), self)

    def note(self, iterator):
        self._latest = weakref.ref(iterator)

    def made(self, iterator):
        return self._latest is not None and self._latest() is iterator


class _Noted:
    """A data set whose iterators are noted."""

    def __init__(self, dataset, iterators):
        self._dataset = dataset
        self._iterators = iterators

    def __iter__(self):
        iterator = iter(self._dataset)
        self._iterators.note(iterator)
        return iterator


def _are_layers(data):
    parts = data if isinstance(data, list | tuple) else [data]
    return any(isinstance(part, str | type | keras.Layer) for part in parts)


def _recording_step(step, recorder, statistics, step_aside):
    """`step` of the model, with the statistics updated from what its layers do in it."""

    def measure(recording, x, y, sample_weight):
        if not statistics.built:
            recorder.check(recording)
            _across_replicas(
                functools.partial(statistics.build, recording.activations, recording.outputs, y, x)
            )
        features = [activation.features() for activation in recording.activations]
        _where(
            statistics.agrees(features, y, sample_weight),
            functools.partial(statistics.update, features, x, y, sample_weight),
            statistics.leave_out,
        )

    def recording_step(data):
        try:
            x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
            if not statistics.built:
                # Some models are only called in parts, by a step of their own.
                with contextlib.suppress(Exception), rehearsal(recorder.model):
                    build(recorder.model, x)
        except Exception as error:  # noqa: BLE001 - whatever it is, the training goes on
            step_aside(f"the steps of this model take other data than (x, y, weights): {error}")
            return step(data)
        with recorder.recording() as recording:
            logs = step(data)
        try:
            measure(recording, x, y, sample_weight)
        except Exception as error:  # noqa: BLE001
            step_aside(error)
        return logs

    return recording_step


def _where(condition, do, otherwise):
    """Does one or the other in a step, as a tensor says if it is one."""
    import tensorflow as tf

    if isinstance(condition, bool) or tf.distribute.has_strategy():  # which has no branches
        do()
        return

    def branch(function):
        function()
        return tf.zeros(())

    tf.cond(condition, lambda: branch(do), lambda: branch(otherwise))


def _across_replicas(build):
    """Calls `build`, which makes variables, where a distribution strategy allows it."""
    import tensorflow as tf

    replica = tf.distribute.get_replica_context()
    if not tf.distribute.has_strategy() or replica is None:
        # A tf.function that is seen making variables is traced twice: in a thread it is not.
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            thread.submit(build).result()
        return

    def merged(strategy):
        with tf.init_scope(), strategy.scope():
            build()

    replica.merge_call(merged)


def _fit_validates(model):
    """Whether the running `fit` was given validation data; None where no `fit` of Keras is running.

    Keras does not tell its callbacks before the first validation, which is too late: without
    validation the training pass has to be recorded from the start. So this looks at `fit` itself,
    once, and keeps nothing of it.
    """
    fit = _fit_frame()
    if fit is None or fit.f_locals["self"] is not model:
        return None
    return fit.f_locals["validation_data"] is not None


def _fit_frame():
    """The frame of the innermost `fit` of Keras that is running, or None.

    Nobody may look into it while a step runs: in `f_locals` stands whatever `fit` holds, iterators
    with running threads among it, for as long as the frame lives.
    """
    code = inspect.unwrap(keras.Model.fit).__code__
    frame = sys._getframe()
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame


class _Summaries:
    """TensorBoard event files: scalars per layer and per class, the curve and the heat map."""

    def __init__(self, log_dir):
        import tensorflow as tf

        self._summary = tf.summary
        self._writer = tf.summary.create_file_writer(str(log_dir))

    def write(self, profile):
        with self._writer.as_default(step=profile.epoch):
            for name, values in profile.layer_values.items():
                for layer, value in zip(profile.layers, values, strict=True):
                    self._summary.scalar(f"{name}/{layer}", value)
            for measure, values in profile.values.items():
                for layer, row, mean in zip(
                    profile.layers, values, profile.mean_of(measure), strict=True
                ):
                    self._summary.scalar(f"{measure}/{layer}", mean)
                    for name, value in zip(profile.classes, row, strict=True):
                        self._summary.scalar(f"{measure}_by_class/{layer}/{name}", value)
                for name, draw in (("curve", plots.entropy_curve), ("heatmap", plots.heatmap)):
                    picture = plots.pixels(draw(profile, measure))
                    self._summary.image(f"{measure}/{name}", picture[None])
        self._writer.flush()

    def close(self):
        self._writer.close()
