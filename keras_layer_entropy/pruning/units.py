"""Take units out of a model, and refit what took them."""

import numbers
import warnings

import numpy as np
from keras import ops

from keras_layer_entropy.measures.measure import listed
from keras_layer_entropy.pruning import patches
from keras_layer_entropy.pruning.channels import find_channels
from keras_layer_entropy.pruning.graph import shared_paths
from keras_layer_entropy.pruning.reconstruction import Taker, least_missed
from keras_layer_entropy.pruning.repair import WIDEST, Choice, centred, repair
from keras_layer_entropy.pruning.rewrite import thinned
from keras_layer_entropy.pruning.walking import Walk, inputs_of
from keras_layer_entropy.recording.layers import choose_layers
from keras_layer_entropy.recording.passes import Source


def remove_units(model, units, calibration_data=None, *, batch_size=256, steps=None):
    """The model without some units (neurons, kernels, channels), and with what carried them.

    Units that are tied to those named go with them: a residual sum ties the channels of all layers
    that add to it. With calibration data, the layers that took what is removed are refitted in
    closed form, in the order of the forward pass: each kernel and bias become the ridge regression
    of what the layer computed before on what it is given now. No labels, no training.

    Args:
        model: a built Sequential or functional model, nested as you like; it is not changed.
        units: name or path of a layer -> indices of its units, or the share of them that is taken
            out, a float: `round(units * share)` of them, those that the layers behind miss least
            (`reconstruction.least_missed`), which needs calibration data.
        calibration_data: `(x, y)` or `x` arrays, a `tf.data.Dataset` or a `PyDataset`; labels are
            not used. Without, what remains keeps its weights, with a warning.
        batch_size: batch size for arrays.
        steps: number of batches of the calibration data to read, None for all.

    Returns:
        A new `keras.Model`.

    Raises:
        ValueError: no such layer, layers that make no units or whose units have to stay, with the
            reason, indices out of range, all units of a layer, or data that do not fit.

    Example:

    >>> import keras
    >>> dense = keras.layers.Dense
    >>> model = keras.Sequential([keras.Input((4,)), dense(8, "relu", name="a"), dense(2)])
    >>> x = np.random.normal(size=(100, 4))
    >>> smaller = remove_units(model, {"a": [0, 5]}, x)
    >>> smaller.get_layer("a").units, remove_units(model, {"a": 0.5}, x).get_layer("a").units
    (6, 4)
    """
    channels = find_channels(model)
    named, shares = _checked(model, channels, units)
    if shares and calibration_data is None:
        raise ValueError(
            f"Which {listed(list(shares))} units go is chosen by what the layers behind miss: pass "
            "calibration_data=, or the indices of the units."
        )
    if calibration_data is None:
        gone = _roots_of(channels, named)
        warnings.warn(
            "Nothing is refitted without calibration_data=: the layers behind just lose what they "
            "are given.",
            stacklevel=2,
        )
        return thinned(model, channels, gone)
    inputs = inputs_of(model, Source(calibration_data, batch_size, steps, must_end=True))
    choices, shared_out = _split(channels, shares)
    early = np.union1d(_roots_of(channels, named), _chosen(model, channels, shared_out, inputs))
    smaller = thinned(model, channels, early)
    _, chosen = repair(smaller, model, inputs, *_losses(channels, early), choices)
    if not chosen:
        return smaller
    late = _places(channels, early, [unit for unit, _ in chosen])
    channels = find_channels(smaller)
    return thinned(smaller, channels, _roots_of(channels, late))


def _split(channels, shares):
    """`(choices, others)`: `repair.Choice` by the path of the only layer that takes what a layer
    makes, where it is only one; path -> how many units of those taken by several.
    """
    choices, others = {}, {}
    for path, count in shares.items():
        units = _free(channels, path)
        takers = [
            p
            for p, ids in channels.takers.items()
            if np.isin(channels.ties.roots(ids), units).any()
        ]
        tied = [p for p in channels.makers if np.isin(channels.roots(p), units).any()]
        normalised = any(
            type(call.operation).__name__ in _INEXACT
            and np.isin(channels.ties.roots(part.ids), units).any()
            for part in channels.slices
            for call in channels.graph.calls_of(part.path)
        )
        if (
            len(takers) == len(tied) == 1
            and not normalised
            and len(channels.graph.calls_of(takers[0])) == 1
        ):
            each = len(channels.makers[path]) // len(units)
            owners = channels.ties.roots(channels.takers[takers[0]])
            choice = choices.setdefault(takers[0], Choice(owners, []))
            choice.among.append((units, min(count // each, len(units) - 1)))
        else:
            others[path] = count
    return choices, others


def _free(channels, path):
    """The numbers of the units of a layer that may go."""
    reasons = channels.reasons(path)
    roots = [root for i, root in enumerate(channels.roots(path).tolist()) if i not in reasons]
    return list(dict.fromkeys(roots))


def _places(channels, early, units):
    """Path of a layer -> which of the units that it has left are some units."""
    found = {}
    for path, ids in channels.makers.items():
        roots = channels.roots(path)[channels.kept(ids, early)]
        places = np.flatnonzero(np.isin(roots, units)).tolist()
        if places:
            found[path] = places
    return found


_INEXACT = ("LayerNormalization", "GroupNormalization", "RMSNormalization")


def _checked(model, channels, units):
    """`(named, shares)`: path -> indices, and path -> how many units; errors for what cannot be."""
    named, shares = {}, {}
    for name, wanted in units.items():
        found = list(choose_layers(model, name))
        if len(found) > 1:
            raise ValueError(f"{name!r} fits {found}: give the path of one of them.")
        (path,) = found
        if path not in channels.makers:
            raise ValueError(f"{path!r} makes no units that could be taken out.")
        count, reasons = len(channels.makers[path]), channels.reasons(path)
        if isinstance(wanted, float):
            if not 0 < wanted < 1:
                raise ValueError(f"units={{{name!r}: {wanted}}}; expected a share between 0 and 1.")
            shares[path] = round(count * wanted)
            if len(reasons) == count:
                raise ValueError(f"{path!r} cannot be thinned: {next(iter(reasons.values()))}.")
            continue
        named[path] = _indices(name, wanted, count)
        for index in named[path]:
            if index in reasons:
                raise ValueError(f"Unit {index} of {path!r} has to stay: {reasons[index]}.")
    return named, shares


def _indices(name, wanted, count):
    """Indices of units, each once and in range."""
    given = wanted if isinstance(wanted, list | tuple | np.ndarray) else None
    if given is None or not all(isinstance(i, numbers.Integral) for i in given) or not len(given):
        raise ValueError(
            f"units={{{name!r}: {wanted!r}}}; expected a list of indices, or a share, a float."
        )
    if wrong := [int(i) for i in given if not 0 <= i < count]:
        raise ValueError(f"{name!r} has the units 0 to {count - 1}; there is no unit {wrong[0]}.")
    if len(set(given)) == count:
        raise ValueError(f"units={{{name!r}: ...}} names all {count} units: some have to stay.")
    return sorted({int(i) for i in given})


def _roots_of(channels, named):
    """The numbers of units that are named; errors where a tied layer is named with other units."""
    gone = [channels.roots(path)[indices] for path, indices in named.items()]
    gone = np.unique(np.concatenate(gone)) if gone else np.zeros(0, int)
    for path, indices in named.items():
        goes = np.flatnonzero(np.isin(channels.roots(path), gone)).tolist()
        if goes != indices:
            raise ValueError(
                f"Of {path!r} the units {listed(list(map(str, goes)))} go together, by themselves "
                "or because of other layers that are tied to it, but "
                f"{listed(list(map(str, indices)))} are named: name the same for all."
            )
    return gone


def _chosen(model, channels, shares, inputs):
    """The numbers of the units that are missed least, so many of each layer."""
    if not shares:
        return np.zeros(0, int)
    takers, gone = _takers(model, channels, inputs), set()
    for path, count in shares.items():
        units = _free(channels, path)
        count -= len(gone.intersection(units))
        own = [x for x in takers.values() if np.isin(x.owners, units).any()]
        if not own:
            raise ValueError(f"No layer that could be refitted takes what {path!r} makes.")
        each = len(channels.makers[path]) // len(units)
        left = [unit for unit in units if unit not in gone]
        for unit, _ in least_missed(own, [(left, min(count // each, len(left) - 1))]):
            gone.add(unit)
    return np.array(sorted(gone), int)


def _takers(model, channels, inputs):
    """Path -> `Taker` of each layer that takes units and can be refitted."""
    walk, found = Walk(model, inputs), {}
    shared = shared_paths(walk.graph)
    for call in walk.graph.calls:
        layer = call.operation
        if (
            call.path in channels.takers
            and call.path not in shared
            and patches.obstacle(layer) is None
            and patches.features_of(layer) <= WIDEST
        ):
            gram = patches.gram(_with_ones(layer, x) for x in walk.given(call)[0])
            owners = np.tile(
                channels.ties.roots(channels.takers[call.path]), patches.taps_of(layer)
            )
            found[call.path] = Taker(centred(gram, len(gram) - 1), patches.matrix(layer), owners)
        walk.make(call)
    return found


def _with_ones(layer, x):
    rows = patches.rows(layer, x)
    return ops.concatenate([rows, ops.ones_like(rows[:, :1])], axis=-1)


def _losses(channels, gone):
    """Path of each layer that loses something -> units that it keeps; paths of those to refit."""
    kept = {}
    for part in channels.slices:
        if len(channels.kept(part.ids, gone)) < len(part.ids):
            kept.setdefault(part.path, None)
    for path, ids in channels.makers.items():
        places = channels.kept(ids, gone)
        if len(places) < len(ids):
            kept[path] = places
    paths = [
        call.path
        for call in channels.graph.calls
        if getattr(call.operation, "weights", ()) and patches.obstacle(call.operation) is None
    ]
    return kept, paths
