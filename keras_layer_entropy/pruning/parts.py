"""What can be taken out of a model, what that is predicted to cost, and a plan of both."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from keras_layer_entropy.pruning.cost import Cost


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """What goes as one: a layer with what belongs to it, or some units of a layer.

    Attributes:
        kind: `"block"`, `"layer"` or `"unit"`.
        path: path of the layer.
        indices: of the units that go, for the kind `"unit"`.
        members: paths of all layers that go, or lose something.
        consumers: paths of the layers that take what goes, and are refitted.
        saves: the `Cost` of the model minus that of the model without it, where that is known.

    Example:

    >>> Part(kind="unit", path="conv", indices=(3,)).name
    'conv[3]'
    """

    kind: str
    path: str
    indices: tuple[int, ...] = ()
    members: tuple[str, ...] = ()
    consumers: tuple[str, ...] = ()
    saves: Cost | None = dataclasses.field(default=None, compare=False)

    @property
    def name(self) -> str:
        """What it is called where people read it."""
        return f"{self.path}[{', '.join(map(str, self.indices))}]" if self.indices else self.path


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a criterion says of a part.

    Attributes:
        loss: what it costs to lose the part, in the criterion's own unit: the lowest goes first.
        words: the same in words.
        change: how much the outputs change without it, the root mean square relative to their
            spread over the samples, where the criterion knows that; of units about.
        cut: `(model, residuals)`, the model without the part as `surgery.take_out` gives it, where
            the criterion had to make it and it is the first to go.
    """

    loss: float
    words: str
    change: float | None = None
    cut: Any = dataclasses.field(default=None, repr=False, compare=False)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What may go, the first to go first, and why the rest stays.

    Attributes:
        parts: tuple of `Part`.
        predictions: tuple of `Prediction`, one for each part.
        reasons: path of a layer -> why nothing of it goes.
        costs: `Cost` of the model as it is, and without all parts where these can go together and
            that is known.

    Example:

    >>> plan = Plan((Part(kind="layer", path="a"),), (Prediction(0.1, "it is flat"),))
    >>> Plan.from_json(plan.to_json()) == plan
    True
    """

    parts: tuple[Part, ...] = ()
    predictions: tuple[Prediction, ...] = ()
    reasons: dict[str, str] = dataclasses.field(default_factory=dict)
    costs: tuple[Cost, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The plan as plain values; models that a criterion made are left out."""
        predictions = [
            {"loss": x.loss, "words": x.words, "change": x.change} for x in self.predictions
        ]
        return {
            "parts": [
                {name: _plain(getattr(part, name)) for name in _FIELDS} for part in self.parts
            ],
            "predictions": predictions,
            "reasons": dict(self.reasons),
            "costs": [_plain(cost) for cost in self.costs],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Plan":
        """What `to_json` gave, also after a way through a file.

        Raises:
            ValueError: it is no plan.
        """
        try:
            parts = [{name: _read(part[name]) for name in _FIELDS} for part in data["parts"]]
            return cls(
                parts=tuple(Part(**part) for part in parts),
                predictions=tuple(Prediction(**x) for x in data["predictions"]),
                reasons=dict(data["reasons"]),
                costs=tuple(map(_read, data["costs"])),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"This is no plan: {error!r}.") from error


_FIELDS = tuple(field.name for field in dataclasses.fields(Part))


def _plain(value: Any) -> Any:
    if isinstance(value, Cost):
        return dataclasses.asdict(value)
    return list(value) if isinstance(value, tuple) else value


def _read(value: Any) -> Any:
    if isinstance(value, dict):
        latency = {int(size): time for size, time in value["latency"].items()}
        uncounted = tuple(value.get("uncounted", ()))  # earlier plans have none
        return Cost(**{**value, "latency": latency, "uncounted": uncounted})
    return tuple(value) if isinstance(value, list) else value


LARGER = "the model would be no smaller without it: what takes its place, or what is behind, grows"


def larger(saves: Cost) -> bool:
    """Whether a model would have no fewer parameters without a part, nor operations, if known.

    Example:

    >>> [larger(Cost(1, *saves, {})) for saves in ((-20, 0), (-20, 30), (20, None))]
    [True, False, False]
    """
    return saves.parameters <= 0 and (saves.flops is None or saves.flops <= 0)
