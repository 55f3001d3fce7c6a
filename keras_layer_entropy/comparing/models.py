"""Two models side by side, layer by layer."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from matplotlib.figure import Figure

from keras_layer_entropy import plots
from keras_layer_entropy.comparing.matching import names_in_first, said
from keras_layer_entropy.measures.measure import listed
from keras_layer_entropy.plots.style import order_of_both
from keras_layer_entropy.pruning.cost import Cost, cost_of, size_of
from keras_layer_entropy.recording.layers import every_layer
from keras_layer_entropy.report.side_by_side import Comparison, Section, share
from keras_layer_entropy.report.tables import cost_rows, cost_text


def names_of_models(first: keras.Model, second: keras.Model) -> tuple[str, str] | None:
    """What two models are called by themselves."""
    return None if first.name == second.name else (first.name, second.name)


def compare_models(
    first: keras.Model, second: keras.Model, names: tuple[str, str], x: Any = None
) -> Comparison:
    """The `Comparison` of two models; ValueError for one that is not built."""
    models = first, second
    costs, notes = costs_of(models, names, x)
    inside = [every_layer(model)[0] for model in models]
    paths = [list(found) for found in inside]
    inside[1] = dict(zip(names_in_first(*paths), inside[1].values(), strict=True))
    own = [_parameters(model, layers) for model, layers in zip(models, inside, strict=True)]
    layers = order_of_both(list(own[0]), list(own[1]))
    units = [[_width(found.get(path)) for path in layers] for found in inside]
    parameters = [[found.get(path) for path in layers] for found in own]
    rows = [
        (path, *(_text(n) for n in numbers), _fate(*numbers[2:]))
        for path, *numbers in zip(layers, *units, *parameters, strict=True)
    ]
    columns = ["layer", *(f"{what}\n{x}" for what in ("units", "parameters") for x in names)]
    sections = [
        Section("Costs", ["", *names, "change"], cells_of_costs(*costs)),
        Section("Layers with weights", [*columns, "change"], rows),
    ]
    draw = functools.partial(_figure, layers, names, _array(units), _array(parameters))
    return Comparison(names, sections, [*notes, *said(*paths), *_notes(inside, own, names)], draw)


def _figure(
    layers: Sequence[str], names: tuple[str, str], units: np.ndarray, parameters: np.ndarray
) -> Figure:
    """Of the layers that have units: those that normalise, say, would take half of the room."""
    shown = np.isfinite(units).any(axis=0)
    shown = shown if shown.any() else np.full(len(layers), True)
    rest = np.nansum(parameters[:, ~shown]) / np.nansum(parameters)
    other = f" (other layers: {rest:.1%} of all parameters)" if rest else ""
    return plots.two_networks(
        [layer for layer, good in zip(layers, shown, strict=True) if good],
        dict(zip(names, units[:, shown], strict=True)),
        dict(zip(names, parameters[:, shown], strict=True)),
        f"Units and parameters of each layer{other}",
    )


def costs_of(
    models: Sequence[keras.Model], names: Sequence[str], x: Any
) -> tuple[list[Cost], list[str]]:
    """The `Cost`s of models, and what is to be said of them."""
    costs, notes = [], []
    for model, name in zip(models, names, strict=True):
        if not model.built:
            raise ValueError(
                f"{model.name!r} is not built, so that its layers have no weights: give it a "
                "keras.Input(shape) first, or call it on a batch."
            )
        try:
            cost, why = cost_of(model, x), "its call is code."
        except ValueError as error:  # sizes that are left open, say
            cost, why = size_of(model), str(error)
        if cost.flops is None:
            notes.append(f"The FLOPs of {name} are not counted: {why}")
            cost = dataclasses.replace(cost, uncounted=())
        costs.append(cost)
    return costs, notes


def cells_of_costs(first: Cost, second: Cost) -> list[tuple[str, ...]]:
    """The rows of a section: name, each, change."""
    return [
        (name, cost_text(a, form), cost_text(b, form), share(a, b))
        for name, a, b, form in cost_rows(first, second)
    ]


def _parameters(model: keras.Model, inside: dict[str, keras.Layer]) -> dict[str, int]:
    """Path of each layer -> the number of its weights that are in no layer inside it.

    Of the layers that have some, in order; those of the model itself come last.
    """
    own: dict[str, int] = {}
    seen: set[int] = set()
    for path, layer in [("(the model itself)", model), *inside.items()][::-1]:  # inner ones first
        new = {id(x): math.prod(x.shape) for x in layer.weights if id(x) not in seen}
        seen.update(new)
        own[path] = sum(new.values())
    return {path: own[path] for path in (*inside, "(the model itself)") if own[path]}


def _width(layer: keras.Layer | None) -> int | None:
    """How many units a layer has, by the word that its kind has for it; None for other layers."""
    if isinstance(layer, keras.layers.TimeDistributed):
        layer = layer.layer
    if isinstance(layer, keras.layers.EinsumDense):
        axes, made = layer.equation.partition(",")[2].replace("...", "").split("->")
        sizes = zip(axes, layer.kernel.shape, strict=True)
        return math.prod(n for axis, n in sizes if axis in made)
    found = (getattr(layer, name, None) for name in ("units", "filters", "output_dim"))
    return next((x for x in found if isinstance(x, int)), None)


def _notes(
    inside: Sequence[dict[str, keras.Layer]],
    own: Sequence[dict[str, int]],
    names: tuple[str, str],
) -> list[str]:
    notes = []
    for one, other in ((0, 1), (1, 0)):
        alone = [path for path in inside[one] if path not in inside[other]]
        with_weights = [path for path in alone if path in own[one]]
        if with_weights:
            notes.append(f"Only {names[one]} has the layers {listed(with_weights)}.")
        if rest := [path for path in alone if path not in own[one]]:
            notes.append(f"Only {names[one]} has, without weights of their own, {listed(rest)}.")
    for path, layer in inside[0].items():
        kinds = [type(x).__name__ for x in (layer, inside[1].get(path, layer))]
        if kinds[0] != kinds[1]:
            notes.append(f"{path} is a {kinds[0]} in {names[0]}, a {kinds[1]} in {names[1]}.")
    return notes


def _fate(first: int | None, second: int | None) -> str:
    """What became of a layer's parameters."""
    if first is None or second is None:
        return "new" if first is None else "gone"
    return share(first, second)


def _text(count: int | None) -> str:
    return "-" if count is None else f"{count:,d}"


def _array(counts: Sequence[Sequence[int | None]]) -> np.ndarray:
    """`[networks, layers]`, NaN where there is none."""
    return np.array([[np.nan if x is None else x for x in row] for row in counts], float)
