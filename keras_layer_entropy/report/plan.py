"""What a plan says of the parts of a network, in lines and in rows."""

import dataclasses
from typing import Any

from matplotlib.figure import Figure

from keras_layer_entropy import plots
from keras_layer_entropy.measures.measure import listed

_COSTS = {"parameters": "parameters", "flops": "FLOPs", "latency": "time"}
_KINDS = {"block": "block", "layer": "layer", "unit": "units"}
PLAN_NOTE = (
    "Savings are shares of the network's, of each part alone: those of several do not add up where "
    "they share something. Time is that of the calls one by one with 256 samples on this machine, "
    "and about what of it goes; a linear layer in place of a block is not counted. The change of "
    "the outputs is predicted before any training, the root mean square over their spread: of a "
    "block with what stands in for it, of a layer once the next ones are refitted, of units about. "
    "A search asks all of this anew after each step, so that it may go in another order."
)


@dataclasses.dataclass(frozen=True)
class PlanRow:
    """A part of a plan as people read it.

    Attributes:
        kind: `"block"`, `"layer"` or `"unit"`.
        name: its path.
        parameters: how many it saves.
        saved: `"parameters"`, `"flops"`, `"latency"` -> share of the network's; None for unknown.
        change: predicted change of the outputs; None where the criterion does not know it.
        words: what else the criterion says.
    """

    kind: str
    name: str
    parameters: int
    saved: dict[str, float | None]
    change: float | None
    words: str

    @property
    def title(self) -> str:
        """Its name and what it is."""
        return f"{self.name} ({_KINDS[self.kind]})"


def plan_rows(plan: Any) -> list[PlanRow]:
    """The parts of a plan, in its order.

    Args:
        plan: `pruning.Plan` with costs, and what each part saves.

    Example:

    >>> from keras_layer_entropy.pruning import Cost, Part, Plan, Prediction
    >>> part = Part(kind="layer", path="a", saves=Cost(1, 25, 10, {}))
    >>> said = Prediction(0.1, "outputs change by 10.0% once refitted", 0.1)
    >>> (row,) = plan_rows(Plan((part,), (said,), costs=(Cost(2, 100, 100, {}),)))
    >>> row.title, row.saved["parameters"], row.words
    ('a (layer)', 0.25, 'once refitted')
    """
    rows = []
    for part, said in zip(plan.parts, plan.predictions, strict=True):
        words = said.words
        if said.change is not None:  # which is a number of its own
            words = words.removeprefix(f"outputs change by {said.change:.1%} ")
        if part.kind == "unit" and part.members:
            words += f"; with {listed(list(part.members), 6)}"
        saved = {key: _share(plan.costs[0], part.saves, key) for key in _COSTS}
        row = PlanRow(part.kind, part.path, part.saves.parameters, saved, said.change, words)
        rows.append(row)
    return rows


def _share(whole: Any, saves: Any, key: str) -> float | None:
    if key == "latency":
        pairs = [(whole.latency[size], time) for size, time in saves.latency.items()]
    else:
        pairs = [(getattr(whole, key), getattr(saves, key))]
    known = [time / all_of_it for all_of_it, time in pairs if all_of_it and time is not None]
    return known[0] if known else None


def plan_lines(plan: Any) -> list[str]:
    """A line for each part of a plan, with a head; none for a plan without parts.

    Args:
        plan: as for `plan_rows`.
    """
    rows = plan_rows(plan)
    table = [("part", "saves parameters", "", "FLOPs", "time", "outputs change by", "")] + [
        (
            f"{number}. {row.title}",
            f"{row.parameters:,d}",
            *(percent(row.saved[key]) for key in _COSTS),
            percent(row.change),
            row.words,
        )
        for number, row in enumerate(rows, start=1)
    ]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            (cells[0].ljust(widths[0]), *map(str.rjust, cells[1:-1], widths[1:-1]), cells[-1])
        )
        for cells in (table if rows else [])
    ]


def percent(share: float | None) -> str:
    """A share in words, `-` where it is not known."""
    return "-" if share is None else f"{share:.1%}"


def plan_summary(plan: Any) -> str:
    """How many parts of which kinds may go, a sentence."""
    kinds = [part.kind for part in plan.parts]
    words = {"block": "block", "layer": "layer", "unit": "group of units"}
    found = [
        f"{kinds.count(kind)} {word.replace('group', 'groups') if kind == 'unit' else f'{word}s'}"
        if kinds.count(kind) > 1
        else f"1 {word}"
        for kind, word in words.items()
        if kind in kinds
    ]
    if not found:
        return "Nothing can go."
    return f"{listed(found)} can go, each by itself."


def plan_figure(plan: Any) -> Figure | None:
    """`plots.plan_points` of the parts whose change of the outputs is known; None for none."""
    points = []
    for row in plan_rows(plan):
        saved = {_COSTS[key]: row.saved[key] or 0.0 for key in ("flops", "latency")}
        if row.change is not None:
            points.append((row.name, row.kind, saved, row.change))
    return plots.plan_points(points) if points else None
