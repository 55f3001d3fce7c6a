"""Take units out of a model, and refit what took them."""

import numbers
import warnings
from typing import Any

import keras
import numpy as np

from keras_layer_entropy.backend import Data
from keras_layer_entropy.measures.measure import listed
from keras_layer_entropy.pruning.channels import Channels, find_channels
from keras_layer_entropy.pruning.optimizer_state import restart_averages
from keras_layer_entropy.pruning.parts import Plan
from keras_layer_entropy.pruning.refit import as_inputs, check_inputs
from keras_layer_entropy.pruning.repair import Choice, mixes, repair
from keras_layer_entropy.pruning.rewrite import thinned
from keras_layer_entropy.pruning.unit_criteria import (
    GREEDY,
    UnitSituation,
    can_be_refitted,
    check_criterion,
    first_to_go,
    free,
    holds,
)
from keras_layer_entropy.pruning.walking import inputs_of
from keras_layer_entropy.recording.graph import shared_paths
from keras_layer_entropy.recording.layers import choose_layers
from keras_layer_entropy.recording.passes import Source


def remove_units(
    model: keras.Model,
    units: dict | Plan,
    calibration_data: Data = None,
    *,
    criterion: str = GREEDY,
    batch_size: int = 256,
    steps: int | None = None,
    seed: int = 0,
) -> keras.Model:
    """The model without some units (neurons, channels, heads, states) and what carried them.

    Units that are tied to those named go with them: a residual sum ties the channels of all layers
    that add to it. With calibration data, layers that take less now are refitted in closed form, in
    the order of the forward pass: kernel and bias become the ridge regression of what the layer
    computed before its activation function on what it is given now, and where it joins a sum, of
    what is missing in that. No labels, no training. Units are what a layer makes: of attention its
    heads (what it gives, under the path of its last layer, `"attention/attention_output"`), of
    recurrent layers their states, which are thinned and not refitted. docs/pruning.md lists them.

    Args:
        model: a built Sequential or functional model, nested as you like; it is not changed.
        units: name or path of a layer -> indices of its units, or the share of them that goes, a
            float: `round(units * share)` of them; or the `Plan` of `choose_units`.
        calibration_data: `(x, y)` or `x` arrays, a `tf.data.Dataset` or a `PyDataset`; labels are
            used by some criteria only. All of it is held in memory; what the layers give for it,
            beyond a GiB of each model, in temporary files. Without, what remains keeps its
            weights, with a warning.
        criterion: which units a share takes: `"reconstruction"`, those that the layers behind miss
            least once they are refitted (`reconstruction.least_missed`), or a name in
            `unit_criteria.UNIT_CRITERIA`.
        batch_size: batch size for arrays.
        steps: number of batches of the calibration data to read, None for all.
        seed: seed of the criterion `"random"`.

    Returns:
        A new `keras.Model`, compiled like the old one, its optimizer's state cut like the weights.

    Raises:
        ValueError: no such layer or criterion; layers that make no units, or units that have to
            stay, with the reason; indices out of range, all units of a layer, tied layers of which
            different units are named; a share without data; data that do not fit or lead to values
            that are not finite.

    Example:

    >>> dense = keras.layers.Dense
    >>> model = keras.Sequential([keras.Input((4,)), dense(8, "relu", name="a"), dense(2)])
    >>> x = np.random.normal(size=(100, 4))
    >>> smaller = remove_units(model, {"a": [0, 5]}, x)
    >>> smaller.get_layer("a").units, remove_units(model, {"a": 0.5}, x).get_layer("a").units
    (6, 4)
    """
    return take_out_units(
        model, units, calibration_data, criterion, batch_size, steps=steps, seed=seed
    )[0]


def take_out_units(
    model: keras.Model,
    units: dict | Plan,
    calibration_data: Data,
    criterion: str = GREEDY,
    batch_size: int = 256,
    *,
    steps: int | None = None,
    seed: int = 0,
) -> tuple[keras.Model, dict[str, float]]:
    """`remove_units` with what came of the regressions.

    Returns:
        `(model, residuals)`: the new model, and path -> relative residual of its regression.
    """
    check_criterion(criterion)
    channels = find_channels(model)
    named, shares = _checked(model, channels, _of_plan(units) if isinstance(units, Plan) else units)
    if not isinstance(units, Plan):
        _tell_of_tied(channels, {**named, **shares})
    gone = _numbers(channels, named)
    for path in shares:
        if np.isin(channels.roots(path), gone).any():
            raise ValueError(f"Units of {path!r}, or of layers tied to it, are named: name all.")
    if calibration_data is None:
        if shares:
            raise ValueError(
                f"Without calibration_data= nothing tells which units of {listed(list(shares))} "
                "are missed least: pass some inputs, or the indices of units."
            )
        warnings.warn(
            "Without calibration_data= nothing is refitted: the layers behind just lose what they "
            "were given.",
            stacklevel=3,
        )
        _check_something_left(channels, gone)
        return thinned(model, channels, gone), {}
    inputs = inputs_of(model, calibration_source(model, calibration_data, batch_size, steps))
    situation = UnitSituation(model, channels, inputs, calibration_data, batch_size, steps, seed)
    alone = _taken_once(channels, shares) if criterion == GREEDY else {}
    others = {path: count for path, count in shares.items() if path not in alone}
    gone = np.union1d(gone, list(first_to_go(situation, criterion, others))).astype(int)
    _check_something_left(channels, gone)
    smaller = thinned(model, channels, gone)
    choices = _choices(channels, shares, alone, gone)

    def cut(number: int, array: np.ndarray, without: tuple[int, ...] = ()) -> np.ndarray:
        return channels.cut(number, array, gone, without)

    residuals, chosen = repair(smaller, model, inputs, _kept(channels, gone), cut, choices)
    if chosen:
        late = [unit for unit, _ in chosen]
        left = {
            path: np.flatnonzero(np.isin(channels.roots(path)[channels.kept(ids, gone)], late))
            for path, ids in channels.makers.items()
        }
        rest = find_channels(smaller)
        smaller = thinned(smaller, rest, _numbers(rest, left))
    refitted = choose_layers(smaller, list(residuals)).values() if residuals else ()
    restart_averages(smaller, [variable for layer in refitted for variable in layer.variables])
    return smaller, residuals


def calibration_source(
    model: keras.Model, data: Data, batch_size: int = 256, steps: int | None = None
) -> Source:
    """The `Source` of inputs that fit a model; errors where they do not."""
    source = Source(as_inputs(model, data), batch_size, steps, must_end=True)
    check_inputs(model, source.first()[0])
    return source


def _of_plan(plan: Plan) -> dict[str, list[int]]:
    """Path -> indices of a plan of units."""
    if other := [part.name for part in plan.parts if part.kind != "unit"]:
        raise ValueError(f"The plan has parts that are no units: {', '.join(other)}.")
    if not plan.parts:
        raise ValueError("The plan is empty: there is nothing to take out.")
    found: dict[str, list[int]] = {}
    for part in plan.parts:
        found.setdefault(part.path, []).extend(part.indices)
    return found


def _checked(
    model: keras.Model, channels: Channels, units: dict
) -> tuple[dict[str, list[int]], dict[str, int]]:
    """`(named, shares)`: path -> indices, and path -> how many; errors for what cannot be."""
    if not isinstance(units, dict) or not units:
        raise ValueError(
            f"units={units!r}; expected a dict, path of a layer -> indices or a share, or a Plan."
        )
    named: dict[str, list[int]] = {}
    shares: dict[str, int] = {}
    given: dict[str, float] = {}
    for name, wanted in units.items():
        found = list(choose_layers(model, name))
        if len(found) > 1:
            raise ValueError(f"{name!r} fits {found}: give the path of one of them.")
        path = found[0]
        if path in named or path in shares:
            raise ValueError(f"units= names {path!r} twice.")
        if path not in channels.makers:
            layer = choose_layers(model, path)[path]
            depthwise = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
            grouped = isinstance(layer, depthwise) or getattr(layer, "groups", 1) > 1
            raise ValueError(
                f"{path!r} makes no units that could be taken out"
                + (" of it alone: they go with those of the layer before it, name that" * grouped)
                + "."
            )
        count, reasons = len(channels.makers[path]), channels.reasons(path)
        if isinstance(wanted, numbers.Real) and not isinstance(wanted, numbers.Integral):
            for other in shares:
                tied = np.isin(channels.roots(path), channels.roots(other)).any()
                if tied and given[other] != wanted:
                    raise ValueError(
                        f"{other!r} and {path!r} are tied, so that the same share goes from both; "
                        f"{given[other]} and {wanted} are given: name one of them."
                    )
            given[path] = float(wanted)
            shares[path] = _count(name, float(wanted), count)
            if len(reasons) == count:
                raise ValueError(f"{path!r} cannot be thinned: {reasons[0]}.")
            _check_count(channels, path, shares[path])
        else:
            named[path] = _indices(name, wanted, count)
            if frozen := [index for index in named[path] if index in reasons]:
                raise ValueError(f"Unit {frozen[0]} of {path!r} has to stay: {reasons[frozen[0]]}.")
    return named, shares


def _count(name: str, share: float, count: int) -> int:
    """How many units a share is."""
    if not 0 < share < 1 or not 0 < round(share * count) < count:
        raise ValueError(
            f"units={{{name!r}: {share}}}; expected a share between 0 and 1, of {count} units at "
            "least one and not all."
        )
    return round(share * count)


def _indices(name: str, wanted: Any, count: int) -> list[int]:
    """Indices of units, each once and in range."""
    listed_ones = list(wanted) if isinstance(wanted, set | range) else wanted
    given = np.asarray(listed_ones) if isinstance(listed_ones, list | tuple | np.ndarray) else None
    if given is None or given.ndim != 1 or not len(given) or given.dtype.kind not in "iu":
        raise ValueError(
            f"units={{{name!r}: {wanted!r}}}; expected a list of indices, or a share, a float."
        )
    given = np.unique(given).tolist()
    if wrong := [i for i in given if not 0 <= i < count]:
        raise ValueError(f"{name!r} has the units 0 to {count - 1}; there is no unit {wrong[0]}.")
    if len(given) == count:
        raise ValueError(f"units={{{name!r}: ...}} names all {count} units: some have to stay.")
    return given


def _check_count(channels: Channels, path: str, count: int) -> None:
    """Raises where so many units cannot go."""
    units, each = free(channels, path)
    if count < each:
        raise ValueError(
            f"Of {path!r} {each} units go together: {count}, which the share is, are too few."
        )
    if count > len(units) * each:
        reason = next(iter(channels.reasons(path).values()))
        raise ValueError(
            f"Of {path!r} only {len(units) * each} units may go, and the share is {count} of them: "
            f"{reason}."
        )


def _check_something_left(channels: Channels, gone: np.ndarray) -> None:
    for path, ids in channels.makers.items():
        if not len(channels.kept(ids, gone)):
            raise ValueError(f"{path!r} would lose all of its units with those that it is tied to.")


def _numbers(channels: Channels, named: dict) -> np.ndarray:
    """The numbers of units that are named; errors where a tied layer is named with others."""
    roots = [channels.roots(path)[indices] for path, indices in named.items()]
    gone = np.unique(np.concatenate(roots)) if roots else np.zeros(0, int)
    for path, indices in named.items():
        together = np.flatnonzero(np.isin(channels.roots(path), gone))
        if not np.array_equal(together, indices):
            raise ValueError(
                f"Units {listed(list(map(str, together)))} of {path!r} go together, or with layers "
                f"that are tied to it, but {listed(list(map(str, indices)))} are named: name the "
                "same for all."
            )
    return gone


def _tell_of_tied(channels: Channels, units: dict) -> None:
    """Warns of layers that nobody named and that lose units with those that are named."""
    found: dict[str, list[str]] = {}
    for path in units:
        own = channels.roots(path)
        for other in channels.makers:
            if other not in units and np.isin(channels.roots(other), own).any():
                found.setdefault(path, []).append(other)
    for path, others in found.items():
        warnings.warn(f"Tied to {path}, and thinned with it: {listed(others)}.", stacklevel=3)


def _taken_once(channels: Channels, shares: dict[str, int]) -> dict[str, str]:
    """Path of each layer of which one other takes all units, as they are -> path of that.

    Which of its units go is chosen where that layer is refitted, on what it is given then.
    """
    operations = {call.path: call.operation for call in channels.graph.calls}
    shared = shared_paths(channels.graph)
    together = [channels.ties.roots(ids) for ids in channels.together]
    kernels = [
        (part.path, channels.ties.roots(part.ids))
        for part in channels.slices
        if mixes(operations[part.path]) and len(part.variable.shape) > 1 and not part.makes
    ]
    found = {}
    for path in shares:
        units, _ = free(channels, path)
        takers = list(dict.fromkeys(p for p, roots in kernels if holds(roots, units)))
        tied = [p for p in channels.makers if holds(channels.roots(p), units)]
        alone = len(takers) == len(tied) == 1 and not any(holds(x, units) for x in together)
        if (
            alone
            and takers[0] in channels.takers
            and holds(channels.ties.roots(channels.takers[takers[0]]), units)
            and takers[0] not in shared
            and can_be_refitted(operations[takers[0]])
        ):
            found[path] = takers[0]
    return found


def _choices(
    channels: Channels, shares: dict[str, int], alone: dict[str, str], gone: np.ndarray
) -> dict[str, Choice]:
    """Path of a layer -> `Choice` among what it takes, once some units are gone."""
    found: dict[str, Choice] = {}
    for path, taker in alone.items():
        ids = channels.takers[taker]
        owners = channels.ties.roots(ids)[channels.kept(ids, gone)]
        units, each = free(channels, path)
        found.setdefault(taker, Choice(owners, [])).among.append((units, shares[path] // each))
    return found


def _kept(channels: Channels, gone: np.ndarray) -> dict[str, np.ndarray | None]:
    """Path of each layer that loses something -> places of the units that it still makes."""
    kept: dict[str, np.ndarray | None] = {
        part.path: None
        for part in channels.slices
        if len(channels.kept(part.ids, gone)) < len(part.ids)
    }
    for path, ids in channels.makers.items():
        places = channels.kept(ids, gone)
        if len(places) < len(ids):
            kept[path] = places
    return kept
