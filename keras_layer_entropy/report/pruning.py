"""What came of a search, as reports and figures show it."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from keras_layer_entropy import plots
from keras_layer_entropy.measures.measure import listed

_COSTS = {"flops": "FLOPs", "parameters": "parameters"}


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}{'s' if count > 1 else ''}"


@dataclasses.dataclass(frozen=True)
class Thinning:
    """What became of the units of a layer.

    Attributes:
        before, after: how many there are in the original and in the smaller model, 0 where the
            layer went, or was merged into another (`PruningOptions.simplify`).
        gone: indices of those that the search took out, as the original counts them.
        tied: paths of layers that make some of the same units, which go with them.

    Example:

    >>> Thinning(5, 3, (0, 4)).words()
    '0 and 4'
    """

    before: int
    after: int
    gone: tuple[int, ...] = ()
    tied: tuple[str, ...] = ()

    def words(self, most: int = 12) -> str:
        """The indices of those that went, of many the first ones; `-` for none."""
        return listed(list(map(str, self.gone)), most) if self.gone else "-"


@dataclasses.dataclass(frozen=True)
class Pruning:
    """A search and what it was worth.

    Attributes:
        result: `pruning.PruningResult`.
        costs: `pruning.Cost` of the original and of the smaller model.
        qualities: `"validation"` and `"test"` -> the quality of the two, of which `result.quality`
            says what it is.
        units: of the smaller model's convolutions, if there are any: pairs of a unit's name and the
            `pruning.Prediction` of it, as `pruning.rank_units` ranks them.
        widths: path of each layer that makes units -> `Thinning`, of a search that took out units.
    """

    result: Any
    costs: Sequence[Any]
    qualities: Mapping[str, Sequence[float]]
    units: Sequence[tuple[str, Any]] = ()
    widths: Mapping[str, Thinning] = dataclasses.field(default_factory=dict)

    @property
    def of_units(self) -> bool:
        """Whether units may go, so that layers have widths and what is left is told by its cost."""
        return "units" in self.result.options.kinds

    @property
    def thinned(self) -> dict[str, Thinning]:
        """Those of `widths` that lost units."""
        return {path: found for path, found in self.widths.items() if found.gone}

    @property
    def limit(self) -> float:
        """The worst validation quality that was accepted; infinite for no limit."""
        return float(self.result.quality.limit(self.qualities["validation"][0]))

    @property
    def cost(self) -> str:
        """What a search for units is told by, `"flops"` or `"parameters"`."""
        target = self.result.options.target or {"flops": 0.0}
        return "flops" if "flops" in target and self.costs[0].flops else "parameters"

    @property
    def points(self) -> list[tuple[float, float, str]]:
        """The quality on the validation data as layers or units went.

        As `plots.pruning_curves` and `plots.thinning_curves` take them: by the number of layers
        removed, or by the share of `cost` that is left.
        """
        original = 1.0 if self.of_units else 0
        points, removed = [(original, self.qualities["validation"][0], "original")], 0
        for step in self.result.steps:
            removed += step.accepted
            place = self._left(step) if self.of_units else removed + (not step.accepted)
            if step.accepted:
                points.append((place, step.quality_removed, "right after removal"))
            if step.accepted and self.result.options.epochs:
                points.append((place, step.quality_retrained, "after retraining"))
            if not step.accepted:
                points.append((place, step.quality_retrained, "rolled back"))
        return points

    def figure(self) -> Figure:
        """`plots.pruning_curves` of it, or `plots.thinning_curves`."""
        if self.of_units and self.widths:
            widths = {path: (found.before, found.after) for path, found in self.widths.items()}
            cost = _COSTS[self.cost]
            return plots.thinning_curves(widths, self.points, self.limit, cost, self.words)
        before, after = self.result.before, self.result.after
        return plots.pruning_curves(before, after, self.points, self.limit, self.kinds, self.words)

    @property
    def kinds(self) -> str:
        """What may go, in words."""
        *others, last = self.result.options.kinds
        return " or ".join(filter(None, (", ".join(others), last)))

    @property
    def looks(self) -> int:
        """How often the search measured the quality on the validation data."""
        return 1 + len(self.result.steps) * (1 + self.result.options.epochs)

    @property
    def standard_error(self) -> float | None:
        """That of the difference in quality on the validation data; None where it is not known."""
        kept = [step.standard_error for step in self.result.steps if step.accepted]
        return kept[-1] if kept else None

    @property
    def words(self) -> str:
        """What the quality is called."""
        return str(self.result.quality.words)

    def _left(self, step: Any) -> float:
        return float(getattr(step, self.cost) / getattr(self.costs[0], self.cost))

    def summary(self) -> str:
        """What came of it, in a few sentences."""
        what = ", ".join(self._gone())
        if not what:
            return " ".join([self._nothing_gone(), *self._target_words()])
        changes = ", ".join(self._change(key) for key in _COSTS if self._share(key) is not None)
        validation, test = (
            [self.result.quality.text(value) for value in self.qualities[name]]
            for name in ("validation", "test")
        )
        error = self.standard_error
        known = "" if error is None else f" (± {self.result.quality.text(error)} of the difference)"
        qualities = (
            f"Validation {self.words} {validation[0]} before, {validation[1]} after{known}; test "
            f"{self.words} {test[0]} and {test[1]}."
        )
        rejected = sum(step.kind == "unit" and not step.accepted for step in self.result.steps)
        back = [f"Batches of units that were rolled back: {rejected}."] if rejected else []
        return " ".join(
            [f"{what}; {changes}. {qualities}", *self._target_words(), *back, *self._uncounted()]
        )

    def _gone(self) -> list[str]:
        """How many parts of each kind went, and which."""
        parts: dict[str, list[str]] = {"block": [], "layer": []}
        for step in self.result.steps:
            if step.accepted and step.kind in parts:
                parts[step.kind].append(step.part)
        found = []
        if blocks := parts["block"]:
            found.append(f"{_counted(len(blocks), 'block')} went ({listed(blocks)})")
        if layers := parts["layer"]:
            whole = self.costs[0].dense_layers
            found.append(f"{len(layers)} of {whole} Dense layers went ({listed(layers)})")
        if gone := sum(len(thinning.gone) for thinning in self.thinned.values()):
            whole = sum(thinning.before for thinning in self.widths.values())
            of = _counted(len(self.thinned), "layer")
            found.append(f"{gone} of {whole} units went, of {of}")
        return found

    def _nothing_gone(self) -> str:
        """That nothing went, why, and what would change that."""
        kinds, steps, quality = self.kinds, self.result.steps, self.result.quality
        if not steps:
            return f"No {kinds} were taken out: {self._nothing_tried()}."
        best = (max if quality.higher else min)(steps, key=lambda step: step.quality_retrained)
        side = "least" if quality.higher else "most"
        trained = "more epochs of training" if self.result.options.epochs else "some training"
        known, samples = "", ""
        if best.standard_error:
            known = f" ± {quality.text(best.standard_error)}, which counts against it,"
            samples = "more validation samples, "
        return (
            f"No {kinds} were taken out: {self.words} has to be at {side} "
            f"{quality.text(self.limit)}, and came no nearer than "
            f"{quality.text(best.quality_retrained)}{known} without {best.part}. A larger "
            f"max_drop, {samples}or {trained} after each removal, would change that."
        )

    def _nothing_tried(self) -> str:
        """Why not even one part was tried."""
        options, before = self.result.options, self.result.before
        falls = [
            (float(fall), path)
            for fall, path, last in zip(
                before.gradient, before.layers, before.is_output, strict=True
            )
            if path in self.result.reasons and math.isfinite(fall) and not last
        ]
        if options.criterion == "entropy_gradient" and falls:
            fall, path = min(falls)
            return (
                f"entropy falls by {fall:.3f} or more over each ({path}), and by less than "
                f"{options.tolerance:g} it is flat. A larger tolerance, or another criterion, "
                "would change that"
            )
        whys = [f"{path}: {why}" for path, why in self.result.reasons.items()]
        return "; ".join(["there are none that may go", *whys[:3]])

    def _change(self, key: str) -> str:
        return f"{_COSTS[key]} {(self._share(key) or 0.0) - 1:+.0%}"

    def _share(self, key: str) -> float | None:
        """What is left of a cost; None where it is not known."""
        before, after = (getattr(cost, key) for cost in self.costs)
        return after / before if before and after is not None else None

    def _left_of(self, key: str) -> float:
        """What is left of what a target is of; of latency, as the search measured it."""
        if key in _COSTS:
            return self._share(key) or 1.0
        size = int(key.partition("@")[2])
        found = [step.latency[size] for step in self.result.steps if size in step.latency]
        return found[-1][1] / found[-1][0] if found else 1.0

    def _uncounted(self) -> list[str]:
        """What FLOPs leave out, a sentence, if there is something."""
        paths = list(dict.fromkeys(path for cost in self.costs for path in cost.uncounted))
        if not paths:
            return []
        return [f"FLOPs leave out {listed(paths)}, whose operations are not known."]

    def _target_words(self) -> list[str]:
        """Whether the target is met, a sentence, if there is one."""
        target = self.result.options.target
        if target is None:
            return []
        names = {key: _COSTS.get(key, key.replace("@", " of a batch of ")) for key in target}
        wanted = " and ".join(
            f"{100 * share:.3g}% of the {names[key]}" for key, share in target.items()
        )
        if self.result.target_met:
            return [f"The target, at most {wanted}, is met."]
        left = " and ".join(f"{self._left_of(key):.1%} of the {names[key]}" for key in target)
        held = ""
        if math.isfinite(self.limit) and not all(step.accepted for step in self.result.steps):
            held = f" All else that was tried costs more {self.words} than is allowed."
        return [f"The target, at most {wanted}, is not met: {left} are left.{held}"]
