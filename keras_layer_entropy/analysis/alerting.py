"""What a monitor says of the health of layers, once each, and where it watches for NaN."""

from collections.abc import Collection, Iterable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_layer_entropy.measures.health import ActivationHealth, FirstNotFinite
from keras_layer_entropy.measures.measure import Measure, Profile
from keras_layer_entropy.measures.thresholds import ADVICE, Alert, Health, find_alerts
from keras_layer_entropy.recording.outputs import Output


class Alerting:
    """Prints alerts that are new, or worse, and knows when a training is to end.

    Args:
        alerts: True, or `measures.Health`; False where only `stop_on` asks for them.
        stop_on: kinds that end the training.

    Attributes:
        given: the alerts that were given.

    Raises:
        ValueError: neither of these.
    """

    def __init__(self, alerts: bool | Health, stop_on: str | Collection[str]) -> None:
        if not isinstance(alerts, bool | Health):
            raise ValueError(f"alerts={alerts!r}; expected True, False or measures.Health(...).")
        kinds = (stop_on,) if isinstance(stop_on, str) else stop_on
        if not isinstance(kinds, Collection) or not set(map(str, kinds)) <= set(ADVICE):
            raise ValueError(f"stop_on={stop_on!r}; expected some of {tuple(ADVICE)}.")
        self._health = alerts if isinstance(alerts, Health) else Health()
        self._told = tuple(ADVICE) if alerts else kinds
        self._ended = False
        self.stop_on = tuple(kinds)
        self.wanted = bool(alerts) or bool(kinds)
        self.given: list[Alert] = []

    def begin(self) -> None:
        """Forgets what was said."""
        self.given, self._ended = [], False

    def measured(self, measures: list[Measure]) -> list[Measure]:
        """The measures that are asked for, and that of health where it is needed."""
        needed = self.wanted and not _named(measures)
        return [*measures, ActivationHealth()] if needed else measures

    def of_profile(self, profile: Profile) -> bool:
        """As `say`, of what is unhealthy in a profile."""
        name = _named(profile.measures.values())
        return self.wanted and self.say(find_alerts(profile, self._health, name))

    def say(self, found: Iterable[Alert]) -> bool:
        """Prints what was not said before; whether the training is to end."""
        found = [alert for alert in found if alert.kind in self._told]
        worse = self._health.worse
        new = [alert for alert in found if alert.comes_after(self._earlier(alert), worse)]
        self.given.extend(new)
        lines = [f"EntropyMonitor: {alert}" for alert in new]
        kinds = [alert.kind for alert in found if alert.kind in self.stop_on]
        if kinds and not self._ended:
            self._ended = True
            lines.append(f"EntropyMonitor ends the training (stop_on: {kinds[0]}).")
        if lines:
            print("", *lines, sep="\n", flush=True)  # behind the progress bar
        return bool(kinds)

    def _earlier(self, alert: Alert) -> Alert | None:
        """The last alert of the same thing. Where NaN began is told once: then it is everywhere."""
        alike = [
            x for x in self.given if x.kind == alert.kind and bool(x.layer) == bool(alert.layer)
        ]
        if alert.kind != "nan":
            alike = [x for x in alike if x.layer == alert.layer]
        return alike[-1] if alike else None


class WatchForNaN:
    """Watches the outputs of all layers in steps: what `fit_steps.RecordingFunction` makes.

    Args:
        outputs: `recording.outputs.Output`s of a first batch.
    """

    def __init__(self, outputs: list[Output], *_: Any) -> None:
        self._paths = [output.path for output in outputs]
        self._numbers = FirstNotFinite(len(outputs))

    def agrees(self, *_: Any) -> bool:
        """Every batch does."""
        return True

    def leave_out(self) -> None:
        """No batch is left out."""

    def update(self, features: list[tuple], *_: Any) -> None:
        """Adds a batch; ValueError where other layers were called than in the first."""
        if len(features) != len(self._paths):
            raise ValueError("the layers of the model change from batch to batch.")
        self._numbers.update_state(features)

    def reset(self) -> None:
        """Forgets what was seen."""
        self._numbers.reset_state()

    def first(self, model: keras.Model) -> tuple[str, int] | None:
        """Path of the layer and number of the batch in which the outputs were first not finite.

        None where they always are: what a model masks by an infinity, or fills where it is missing,
        is as it should be. But where weights are not finite, which a ReLU may hide from the
        outputs, it is the first batch of all. The layer is the one that was done first of those in
        which there was NaN or infinity for the first time in that batch.

        Args:
            model: that was watched.
        """
        numbers = self._numbers.result()
        batch = int(numbers[-1])
        if not batch and numbers.any() and not _is_finite(model):
            batch = int(numbers[numbers > 0].min())
        row = int(np.flatnonzero(numbers == batch)[0])
        return (self._paths[row] or "the model", batch) if batch else None


def _is_finite(model: keras.Model) -> bool:
    """Whether all weights of a model are."""
    weights = map(ops.convert_to_numpy, model.trainable_weights)
    return all(np.isfinite(weight).all() for weight in weights)


def _named(measures: Iterable[Measure]) -> str:
    """The name of the measure of health among some, "" where there is none."""
    return next((x.name for x in measures if isinstance(x, ActivationHealth)), "")
