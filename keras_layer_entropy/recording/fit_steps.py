"""Record inside the steps that `fit` runs anyway."""

import contextlib
import functools
import inspect
import sys
import types
import weakref

import keras

from keras_layer_entropy.backend import (
    across_replicas,
    either,
    steps_are_traced,
    without_gradients,
)
from keras_layer_entropy.recording.passes import rehearsal
from keras_layer_entropy.recording.recorder import build
from keras_layer_entropy.recording.watching import replaced_attributes


class RecordingFunction:
    """Stands in for `model.train_function` or `test_function` and records when it is told to.

    `fit` looks the function up at every step, so that no other attribute of the model is touched,
    and what stood there comes back when training ends or a step fails. What other callbacks run
    between the steps is not recorded: it comes with another iterator. Where something else in `fit`
    fails no callback is told: then this gives way when it is called from outside of `fit`, or from
    the next one, which brings a new History.

    Args:
        model: the model.
        kind: `"train"` or `"test"`, which steps are recorded.
        recorder: `Recorder` of the model.
        make: makes the measurement in the first step that is recorded, from `(activations, outputs,
            y, inputs)`: an object with `agrees`, `update` and `leave_out`.
        step_aside: called with the reason where a step cannot be recorded.

    Attributes:
        recording: whether steps are recorded now.
        measurement: what was made, None before.
    """

    def __init__(self, model, kind, recorder, make, step_aside):
        self._model = model
        self._recorder, self._make, self._step_aside = recorder, make, step_aside
        self.measurement = None
        self._name = f"{kind}_function"
        self._history = getattr(model, "history", None)
        standing = getattr(model, self._name)
        if isinstance(standing, RecordingFunction):
            if standing._history is self._history:
                raise ValueError(
                    "Two EntropyMonitors without data in one fit: give all layers and measures to "
                    "one of them, or data of its own to the other."
                )
            standing.remove()
        make_function = getattr(model, f"make_{kind}_function")
        make_function()  # if Keras has not made it yet
        self._plain = getattr(model, self._name)
        step = functools.partial(self._recording_step, getattr(model, f"{kind}_step"))
        steps = {f"{kind}_step": step}
        if steps_are_traced():
            with replaced_attributes(model, steps):
                make_function(force=True)
            self._recorded = getattr(model, self._name)
        else:
            self._recorded = functools.partial(self._looked_up, steps)
        setattr(model, self._name, self)
        self._iterators = None if kind == "train" else _Iterators()
        self.recording = False

    def watch_validation(self):
        """Tells the steps of the validation that begins from those of other passes.

        False where it is not that of `fit`, but an `evaluate` that lists the same callback.
        """
        epoch_iterator = getattr(self._model, "_eval_epoch_iterator", None)
        if epoch_iterator is not None:
            self._iterators.watch(epoch_iterator)
        return epoch_iterator is not None

    def __call__(self, iterator):
        known = getattr(self._model, "history", None) is self._history
        if known and self._is_of_fit(iterator):
            return self._record(iterator) if self.recording else self._plain(iterator)
        if not known or _fit_frame() is None:
            self.remove()
        return self._plain(iterator)

    def _looked_up(self, steps, batches):
        """A step of a backend that looks for it on the model at each batch."""
        with replaced_attributes(self._model, steps):
            return self._plain(batches)

    def _record(self, iterator):
        try:
            return self._recorded(iterator)
        except BaseException as error:
            if type(error).__name__ not in ("StopIteration", "OutOfRangeError"):  # end of data
                self.remove()
            raise

    def _is_of_fit(self, iterator):
        """Whether a step is one of `fit`'s own.

        `train_on_batch` comes with a generator, or, where steps are given batches, from elsewhere.
        """
        if self._iterators is not None:
            return self._iterators.made(iterator)
        if steps_are_traced():
            return not isinstance(iterator, types.GeneratorType)
        return sys._getframe(2).f_code is _fit_code()

    def _recording_step(self, step, data):
        """A step of the model, measured by what its layers do in it."""
        try:
            x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
            if self.measurement is None:
                # Some models are only called in parts, by a step of their own.
                with contextlib.suppress(Exception), rehearsal(self._model):
                    build(self._model, x)
        except Exception as error:  # noqa: BLE001 - whatever it is, the training goes on
            self._step_aside(
                f"the steps of this model take other data than (x, y, weights): {error}"
            )
            return step(data)
        with self._recorder.recording() as recording:
            logs = step(data)
        try:
            with without_gradients():
                self._measure(recording, x, y, sample_weight)
        except Exception as error:  # noqa: BLE001
            self._step_aside(error)
        return logs

    def _measure(self, recording, x, y, sample_weight):
        activations = recording.activations
        if self.measurement is None:
            self._recorder.check(recording)
            outputs = recording.outputs
            across_replicas(functools.partial(self._begin, activations, outputs, y, x))
        features = [activation.features() for activation in activations]
        either(
            self.measurement.agrees(features, y, sample_weight),
            functools.partial(self.measurement.update, features, x, y, sample_weight),
            self.measurement.leave_out,
        )

    def _begin(self, *first_batch):
        self.measurement = self._make(*first_batch)

    @property
    def stands(self):
        """Whether `fit` calls this."""
        return getattr(self._model, self._name) is self

    def remove(self):
        if self.stands:
            setattr(self._model, self._name, self._plain)


class _Iterators:
    """Knows the iterators that an epoch iterator of Keras makes, and keeps none of them alive.

    Where steps are given batches, not iterators, it knows the latest batch of them.
    """

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

    def of_noted(self, dataset):
        """An iterator of a data set."""
        iterator = iter(dataset)
        if steps_are_traced():
            self._latest = weakref.ref(iterator)
            return iterator
        return self._of_noted_batches(iterator)

    def _of_noted_batches(self, batches):
        for batch in batches:
            self._latest = lambda batch=batch: batch
            yield batch

    def made(self, given):
        """Whether what a step is given comes from here."""
        made = given if steps_are_traced() else given[0]
        return self._latest is not None and self._latest() is made


class _Noted:
    """A data set whose iterators are noted."""

    def __init__(self, dataset, iterators):
        self._dataset = dataset
        self._iterators = iterators

    def __iter__(self):
        return self._iterators.of_noted(self._dataset)


def fit_validates(model):
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
    code, frame = _fit_code(), sys._getframe()
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame


def _fit_code():
    return inspect.unwrap(keras.Model.fit).__code__
