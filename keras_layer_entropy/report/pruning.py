"""What came of a search, as reports and figures show it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from keras_layer_entropy import plots
from keras_layer_entropy.measures.measure import listed


@dataclasses.dataclass(frozen=True)
class Pruning:
    """A search and what it was worth.

    Attributes:
        result: `pruning.PruningResult`.
        costs: `pruning.Cost` of the original and of the smaller model.
        accuracies: `"validation"` and `"test"` -> accuracies of the two.
        units: of the smaller model's convolutions, if there are any: pairs of a unit's name and the
            `pruning.Prediction` of it, as `pruning.rank_units` ranks them.
    """

    result: Any
    costs: Sequence[Any]
    accuracies: Mapping[str, Sequence[float]]
    units: Sequence[tuple[str, Any]] = ()

    @property
    def limit(self) -> float:
        """The lowest validation accuracy that was accepted."""
        return self.accuracies["validation"][0] - self.result.options.max_accuracy_drop

    @property
    def points(self) -> list[tuple[int, float, str]]:
        """The validation accuracies as layers went, for `plots.pruning_curves`."""
        points, removed = [(0, self.accuracies["validation"][0], "original")], 0
        for step in self.result.steps:
            if step.accepted:
                removed += 1
                points.append((removed, step.accuracy_removed, "right after removal"))
                points.append((removed, step.accuracy_retrained, "after retraining"))
            else:
                points.append((removed + 1, step.accuracy_retrained, "rolled back"))
        return points

    def figure(self) -> Figure:
        """`plots.pruning_curves` of it."""
        before, after = self.result.before, self.result.after
        return plots.pruning_curves(before, after, self.points, self.limit)

    def summary(self) -> str:
        """What came of it, in one sentence or two."""
        removed, (before, after) = self.result.removed, self.costs
        validation, test = self.accuracies["validation"], self.accuracies["test"]
        if not removed:
            return "No layer was taken out: " + (
                "every one that was tried is needed."
                if self.result.steps
                else "the criterion chose none."
            )
        change = after.parameters / before.parameters - 1
        uncounted = list(dict.fromkeys((*before.uncounted, *after.uncounted)))
        without = ""
        if uncounted:
            without = f" FLOPs leave out {listed(uncounted)}, whose operations are not known."
        return (
            f"{len(removed)} of {before.dense_layers} Dense layers went ({listed(removed)}); "
            f"parameters {change:+.0%}. Validation "
            f"accuracy {validation[0]:.4f} before, {validation[1]:.4f} after; test accuracy "
            f"{test[0]:.4f} and {test[1]:.4f}.{without}"
        )
