"""What is unhealthy in a network, by thresholds that all stand here, and what usually mends it."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from keras_layer_entropy.measures.measure import Profile, is_positive

# Kind -> what usually mends it.
ADVICE = {
    "nan": (
        "lower the learning rate, clip gradients (clipnorm=1.0), look for a logarithm or a "
        "division by 0, and for NaN in the data"
    ),
    "dead": "lower the learning rate, or take leaky_relu or gelu in place of relu",
    "exploding": "normalise (BatchNormalization, LayerNormalization), scale the inputs, clip "
    "gradients, or initialise with smaller weights (he_normal for relu)",
    "vanishing": "take relu or gelu in place of sigmoid or tanh, normalise between the layers, or "
    "add residual connections",
    "collapse": "lower the learning rate, and look whether the layer's bias outweighs its kernel, "
    "and whether labels belong to their samples",
    "saturated": "initialise with smaller weights, lower the learning rate, normalise before the "
    "activation function, or scale the inputs",
    "linear": "the layer does what a linear one does: normalise before it, or take it out",
}


@dataclasses.dataclass(frozen=True)
class Health:
    """From where on something is unhealthy.

    Layers that are outputs are asked for NaN, and whether they tell classes apart. What lies behind
    a layer that is not finite, explodes, vanishes, collapses or is all dead suffers from that, and
    is not asked.

    Attributes:
        dead: share of a layer's units that are silent for every sample.
        saturated: share of its units at an end of their range for nearly every sample.
        linear: share of its units that are on for every sample, where their function is linear
            above 0.
        exploding: root mean square of its activations beside that of the first layer, or beside 1
            if that is more; of the first layer itself the square of that.
        vanishing: spread of its activations over the samples beside their root mean square; or
            beside that of the first layer where it is below this number itself, too.
        rank: effective rank of the means of four classes or more, where it is twice that or more in
            the layer before: of some data the classes lie along one line.
        at_once: a layer that leaves less than this share of the relative spread of the layer before
            has collapsed; what is lost little by little vanishes.
        few: in a layer of fewer units shares say little: it is not asked for them.
        worse: an alert comes again where something is so many times worse.

    Raises:
        ValueError: no positive numbers; shares above 1.

    Example:

    >>> Health(dead=0.2).dead
    0.2
    """

    dead: float = 0.5
    saturated: float = 0.5
    linear: float = 0.95
    exploding: float = 1e3
    vanishing: float = 1e-3
    rank: float = 1.05
    at_once: float = 0.02
    few: int = 4
    worse: float = 1.5

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not is_positive(value):
                raise ValueError(f"{field.name}={value!r} of Health; expected a positive number.")
            if field.name in ("dead", "saturated", "linear", "vanishing", "at_once") and value > 1:
                raise ValueError(f"{field.name}={value!r} of Health; expected a share, at most 1.")


@dataclasses.dataclass(frozen=True)
class Alert:
    """Something that is unhealthy.

    Attributes:
        kind: `"nan"`, `"dead"`, `"exploding"`, `"vanishing"`, `"collapse"`, `"saturated"` or
            `"linear"`.
        layer: path of the layer; "" where it is the loss.
        epoch: that was measured, counted from 0 as in Keras, or None.
        value: what was found.
        threshold: from where on that is unhealthy.
        words: what was found, in words.
        units: numbers of the units that it is about, where it is about some.
    """

    kind: str
    layer: str
    epoch: int | None
    value: float
    threshold: float
    words: str
    units: tuple[int, ...] = ()

    @property
    def advice(self) -> str:
        """What usually mends it."""
        return ADVICE[self.kind]

    @property
    def severity(self) -> float:
        """How many times as bad as the threshold, 1 for NaN."""
        if self.kind == "nan":
            return 1.0
        low = self.kind in ("vanishing", "collapse")
        one, other = (self.threshold, self.value) if low else (self.value, self.threshold)
        return one / max(other, 1e-30)

    def comes_after(self, earlier: "Alert | None", worse: float) -> bool:
        """Whether it says something new after an earlier one of its kind and layer, or None."""
        return earlier is None or self.severity >= worse * earlier.severity

    def __str__(self) -> str:
        when = "" if self.epoch is None else f"epoch {self.epoch + 1}: "
        return f"{when}{self.words} ({self.kind}). What usually helps: {self.advice}."


def find_alerts(
    profile: Profile, health: Health | None = None, measure: str = "activation_health"
) -> tuple[Alert, ...]:
    """What is unhealthy in the layers of a profile, in the order of the forward pass.

    Args:
        profile: `EntropyProfile` with `activation_health`.
        health: the thresholds, None for the usual ones.
        measure: the name of that measure in the profile.

    Raises:
        ValueError: it was not measured.

    Example:

    >>> from keras_layer_entropy import EntropyProfile
    >>> from keras_layer_entropy.measures import MeasureResult
    >>> whole = {"dead": [0.9, 0.0], "rms": [1.0, 1.0], "spread": [1.0, 1.0]}
    >>> profile = EntropyProfile(
    ...     layers=("dense", "logits"), widths=(20, 2), is_output=(False, True), classes=("all",),
    ...     count=[10], results={"activation_health": MeasureResult([[0.9], [0.0]], whole)})
    >>> [(alert.kind, alert.layer, alert.value) for alert in find_alerts(profile)]
    [('dead', 'dense', 0.9)]
    """
    return tuple(_Layers(profile, profile[measure], health or Health()).alerts())


def not_finite(layer: str, epoch: int | None, batch: int) -> Alert:
    """The alert of the layer in which NaN or infinity appeared first.

    Args:
        layer: its path; "" for the loss.
        epoch: counted from 0, or None.
        batch: counted from 1.
    """
    words = (
        f"{layer!r} is the first layer with NaN or infinite activations"
        if layer
        else ("the loss is NaN or infinite")
    )
    return Alert("nan", layer, epoch, batch, 1.0, f"{words}, in batch {batch}")


class _Layers:
    """The layers that were measured, one after the other."""

    def __init__(self, profile: Profile, result: Any, health: Health) -> None:
        self._profile, self._result, self._health = profile, result, health
        self._classes = int(np.count_nonzero(profile.count))

    def alerts(self) -> Iterator[Alert]:
        origin = self._origin()
        first = before = None  # rows of hidden layers
        for row, output in enumerate(self._profile.is_output):
            if row == origin:
                batch = self._not_finite(row)
                yield not_finite(self._profile.layers[row], self._profile.epoch, batch)
                return
            if np.isnan(self._number("rms", row)):
                continue  # not measured, or not finite because of the origin
            if output:
                yield from self._collapse(row, before) if self._tells_classes(row) else ()
                continue
            found = list(self._of_hidden(row, first, before))
            yield from found
            if any(self._spreads(alert) for alert in found):
                return
            first, before = row if first is None else first, row

    def _origin(self) -> int | None:
        """The first of the layers in which there is NaN or infinity since it is in the outputs.

        None where it is in none of these: what a model masks or fills is as it should be.
        """
        numbers = [self._not_finite(row) for row in range(len(self._profile.layers))]
        outputs = [n for n, output in zip(numbers, self._profile.is_output, strict=True) if output]
        since = min((n for n in outputs or numbers[-1:] if n), default=0)
        return numbers.index(since) if since else None

    def _tells_classes(self, row: int) -> bool:
        """Whether an output has a unit for each class, or one for two of them."""
        classes, width = len(self._profile.classes), self._profile.widths[row]
        return self._classes > 1 and (width == classes or (width == 1 and classes == 2))

    def _spreads(self, alert: Alert) -> bool:
        """Whether layers behind suffer from it."""
        ill = alert.kind in ("exploding", "vanishing", "collapse")
        return ill or (alert.kind == "dead" and alert.value == 1.0)

    def _number(self, name: str, row: int) -> float:
        return float(self._result.whole[name][row]) if name in self._result.whole else np.nan

    def _not_finite(self, row: int) -> int:
        """The number of the first batch in which a layer is not finite, 0 for none."""
        return int(np.nan_to_num(self._number("not_finite", row)))

    def _alert(
        self, kind: str, row: int, value: float, threshold: float, words: str, **more: Any
    ) -> Alert:
        layer = self._profile.layers[row]
        return Alert(
            kind, layer, self._profile.epoch, value, threshold, f"{layer!r} {words}", **more
        )

    def _of_hidden(self, row: int, first: int | None, before: int | None) -> Iterator[Alert]:
        dead = self._share("dead", row, "are 0 for every sample")
        if dead is not None:
            yield dead
            if dead.value == 1.0:
                return
        lost = list(self._scale(row, first)) or list(self._collapse(row, before))
        lost = lost or list(self._vanishing(row, first))
        yield from lost
        if lost:
            return
        for kind, words in (
            ("saturated", "are at an end of their range for nearly every sample"),
            ("linear", "are on for every sample"),
        ):
            alert = self._share(kind, row, words)
            if alert is not None:
                yield alert

    def _share(self, kind: str, row: int, words: str) -> Alert | None:
        name = "always_on" if kind == "linear" else kind
        value, threshold = self._number(name, row), getattr(self._health, kind)
        width = self._profile.widths[row]
        if not value >= threshold or width < self._health.few:
            return None
        return self._alert(
            kind, row, value, threshold,
            f"has {round(value * width)} of {width} units that {words}",
            units=self._units(name, row),
        )  # fmt: skip

    def _units(self, name: str, row: int) -> tuple[int, ...]:
        known = self._result.details.get(self._profile.layers[row], {})
        return tuple(map(int, np.flatnonzero(known.get(name, ()))))

    def _scale(self, row: int, first: int | None) -> Iterator[Alert]:
        most, rms = self._health.exploding, self._number("rms", row)
        beside = most if first is None else max(1.0, self._number("rms", first))
        if rms / beside > most:
            compared = "" if first is None else f", beside {beside:.3g} in the first layer"
            words = f"has activations of the size {rms:.3g}{compared}"
            yield self._alert("exploding", row, rms / beside, most, words)

    def _relative(self, row: int) -> float:
        rms = self._number("rms", row)
        return self._number("spread", row) / rms if rms > 0 else 0.0

    def _collapse(self, row: int, before: int | None) -> Iterator[Alert]:
        least, relative = self._health.vanishing, self._relative(row)
        sudden = before is None or relative < self._health.at_once * self._relative(before)
        if relative < least and sudden:
            words = f"answers all samples alike: they differ by {relative:.1g} of its size"
            yield self._alert("collapse", row, relative, least, words)
            return
        rank, most = self._number("effective_rank", row), self._health.rank
        wide = min(self._classes, self._profile.widths[row]) >= 4
        told = before is not None and self._number("effective_rank", before) >= 2 * most
        if wide and told and rank < most:
            words = f"has the means of {self._classes} classes in {rank:.2f} directions"
            yield self._alert("collapse", row, rank, most, words)

    def _vanishing(self, row: int, first: int | None) -> Iterator[Alert]:
        least, spread = self._health.vanishing, self._number("spread", row)
        relative = self._relative(row)
        beside = 1.0 if first is None else spread / max(self._number("spread", first), 1e-30)
        if relative < least or (spread < least and beside < least):
            value = min(relative, beside)
            words = f"hardly tells samples apart: they differ by {spread:.1g}"
            words += "" if first is None else f", {beside:.1g} of that in the first layer"
            yield self._alert("vanishing", row, value, least, words)
