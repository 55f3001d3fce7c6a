"""A search as it stands, and what could be done next."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
import numpy as np
from keras import tree

from keras_layer_entropy.analysis.profile import EntropyProfile
from keras_layer_entropy.backend import Data
from keras_layer_entropy.pruning.cost import Cost, is_met
from keras_layer_entropy.pruning.options import PruningOptions
from keras_layer_entropy.pruning.parts import Plan
from keras_layer_entropy.pruning.qualities import Quality
from keras_layer_entropy.recording.passes import Source


@dataclasses.dataclass(frozen=True)
class PruningStep:
    """One try to take a layer out, a block, or a batch of units.

    Attributes:
        kind: `"layer"`, `"block"` or `"unit"`.
        part: path of the Dense layer; name of the block; how many units of how many layers, with
            those that are tied to them.
        members: paths of what went with it; of the layers that lost units.
        criterion, score, reason: why it.
        accepted: whether the model without it was.
        quality_before, quality_removed, quality_retrained: the quality on the validation data with
            it, right after its removal and refit, and after retraining.
        residual: relative residual of the refit, the mean over the layers behind; None without.
        parameters: number of parameters of the model without it.
        entropy: path -> mean normalised activation entropy of each layer, with it.
        seconds: how long it took.
        units: path of a layer -> indices of the units that went, as the original counts them.
        flops: floating-point operations of the model without it, as `Cost` has them.
        latency: batch size -> milliseconds of the original and of the model without it, measured
            in turn, where the target is of that and it was accepted.
        standard_error: of how far `quality_retrained` is from the original's, from what single
            samples lost; None where the quality is no mean over samples.
    """

    kind: str
    part: str
    members: tuple[str, ...]
    criterion: str
    score: float
    reason: str
    accepted: bool
    quality_before: float
    quality_removed: float
    quality_retrained: float
    residual: float | None
    parameters: int
    entropy: dict[str, float]
    seconds: float
    units: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    flops: int | None = None
    standard_error: float | None = None
    latency: dict[int, tuple[float, float]] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "PruningStep":
        """What `dataclasses.asdict` gave, after a way through a file."""
        units = {path: tuple(indices) for path, indices in data.get("units", {}).items()}
        latency = {int(size): tuple(pair) for size, pair in data.get("latency", {}).items()}
        members = tuple(data["members"])
        return cls(**{**data, "members": members, "units": units, "latency": latency})


def units_gone(steps: Iterable[PruningStep]) -> dict[str, tuple[int, ...]]:
    """Path of a layer -> indices of its units that went, as the original counts them."""
    found: dict[str, tuple[int, ...]] = {}
    for step in steps:
        for path, indices in step.units.items() if step.accepted else ():
            found[path] = tuple(sorted((*found.get(path, ()), *indices)))
    return found


@dataclasses.dataclass(frozen=True)
class Standing:
    """What a search has come to.

    Attributes:
        original: the model that it began with.
        model: the model as it is now.
        teacher: the model that was trained last: targets of regressions come from it.
        profile: `EntropyProfile` of the model.
        costs: `Cost` of the original and of the model, with what was measured of latency.
        steps: every `PruningStep` so far.
        options: `PruningOptions`.
        train_data: a function that gives the training data, shuffled by the seed.
        validation_data: data.
        sample: inputs of one sample.
        seed: the seed of the step that comes next.
        quality: `Quality`, what is held on to.
        limit: the worst of it that is accepted.
    """

    original: keras.Model
    model: keras.Model
    teacher: keras.Model
    profile: EntropyProfile
    costs: tuple[Cost, Cost]
    steps: tuple[PruningStep, ...]
    options: PruningOptions
    train_data: Callable[[], Data]
    validation_data: Data
    sample: Any
    seed: int
    quality: Quality
    limit: float

    def rejected(self, kind: str) -> list[PruningStep]:
        """The steps that took out parts of a kind and were rolled back."""
        return [step for step in self.steps if step.kind == kind and not step.accepted]

    def base(self, kind: str) -> keras.Model:
        """The model that targets of regressions come from, and what goes is taken out of.

        The one that was trained last, so that no regression is fitted to what another one gave.
        Only parts of one kind can go in one step, though: the model as it is, where others went
        since.
        """
        others = any(step.accepted and step.kind != kind for step in self.steps)
        return self.model if others else self.teacher

    @property
    def gone(self) -> dict[str, tuple[int, ...]]:
        """Path of a layer -> indices of the units that went, as the original counts them."""
        return units_gone(self.steps)

    @property
    def enough(self) -> str | None:
        """Why the search is at its end, though more could be tried; None while it is not."""
        most, target = self.options.max_removals, self.options.target
        if most is not None and sum(step.accepted for step in self.steps) >= most:
            return f"max_removals={most} is reached"
        if target is not None and is_met(target, *self.costs):
            return "the target is reached"
        return None

    def calibration(self) -> tuple[Data, int | None]:
        """`(data, steps)`: as much of the training data as the options say, any samples of arrays.

        For regressions where units or blocks go.
        """
        options, data = self.options, self.train_data()
        source = Source(data, options.batch_size, options.steps_per_epoch)
        count = options.calibration_samples
        if "batch_size" not in source.keywords:
            size = len(tree.flatten(source.first()[0])[0])
            steps = -(-count // size)
            return data, min(steps, options.steps_per_epoch or steps)
        parts = [source.keywords[name] for name in ("x", "y") if source.keywords[name] is not None]
        whole = len(tree.flatten(parts)[0])
        rows = np.random.default_rng(self.seed).permutation(whole)[:count]
        return tree.map_structure(lambda part: np.asarray(part)[np.sort(rows)], tuple(parts)), None

    def below(self, step: PruningStep) -> str:
        """That the quality fell too far in a step."""
        text = self.quality.text
        error = ""
        if step.standard_error is not None:
            error = f" ± {text(step.standard_error)}, which counts against it"
        side = "least" if self.quality.higher else "most"
        return (
            f"without it {self.quality.words} is {text(step.quality_retrained)}{error}, where at "
            f"{side} {text(self.limit)} is asked for (step {self.steps.index(step) + 1})"
        )


@dataclasses.dataclass(frozen=True)
class Move:
    """What can be done next.

    Attributes:
        kind, part, members, criterion, score, reason, units: as in a `PruningStep`.
        make: a function that gives `(model, residuals)`, the model after it.
    """

    kind: str
    part: str
    members: tuple[str, ...]
    criterion: str
    score: float
    reason: str
    make: Callable[[], tuple[keras.Model, dict[str, float]]]
    units: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Moves:
    """What can be done.

    Attributes:
        candidates: what may come next, one `Move` of each kind that has one.
        plan: `Plan` of all that could be tried, the first to be tried first, and why nothing else.
    """

    candidates: tuple[Move, ...]
    plan: Plan
