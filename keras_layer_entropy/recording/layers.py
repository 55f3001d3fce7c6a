"""Which layers of a model: by name, path, class or predicate."""

import difflib
from collections.abc import Callable, Collection
from typing import TypeAlias

import keras

# One choice of layers: a name or path, a class, a predicate, a layer itself.
_One: TypeAlias = str | type | keras.Layer | Callable[[keras.Layer], bool]
# Which layers: one choice or several; None for the usual ones, every Dense.
LayerChoice: TypeAlias = _One | Collection[_One] | None


def choose_layers(model, layers=None):
    """The chosen layers, path -> layer, in the order in which the model holds them.

    Args and errors as for `ActivationProbe`. A layer inside `TimeDistributed` comes as its
    wrapper.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="logits")])
    >>> list(choose_layers(model))
    ['logits']
    """
    chosen, hidden = choose(model, layers)
    if not chosen and hidden:
        raise ValueError(
            f"{said_of(hidden)}: choose other layers, or apply them without the wrapper."
        )
    if not chosen:
        raise ValueError(
            f"{model.name!r} has no Dense layer"
            if layers is None
            else f"layers={layers!r} fits no layer of {model.name!r}"
        )
    return chosen


def choose(model, layers):
    """The chosen layers, path -> layer; and of those out of reach, path -> where they are."""
    everything, places = every_layer(model)
    layers = listed([keras.layers.Dense] if layers is None else layers)
    chosen = {}
    if not isinstance(layers, list | tuple | set) or not all(
        isinstance(choice, str | type) or callable(choice) for choice in layers
    ):
        raise ValueError(
            f"layers={layers!r}; expected names, paths, layers, layer classes or predicates."
        )
    for choice in layers:
        fitting = [path for path, layer in everything.items() if _fits(choice, path, layer)]
        if isinstance(choice, str) and choice in everything:  # a path, whatever else has that name
            fitting = [choice]
        if not fitting and isinstance(choice, str):
            close = difflib.get_close_matches(choice, everything, n=3, cutoff=0.4)
            raise ValueError(
                f"There is no layer {choice!r} in {model.name!r}; "
                + (f"did you mean {' or '.join(map(repr, close))}? " if close else "")
                + f"It has {list(everything)}."
            )
        one = isinstance(choice, str | keras.Layer)
        if fitting and one and (hidden := {p: places[p] for p in fitting if p in places}):
            raise ValueError(
                f"{said_of(hidden)}: choose other layers, or apply them without the wrapper."
            )
        chosen.update(dict.fromkeys(fitting))
    return (
        {path: x for path, x in everything.items() if path in chosen and path not in places},
        {path: wrapper for path, wrapper in places.items() if path in chosen},
    )


def every_layer(model):
    """All layers inside a model, path -> layer, outer ones first; and where some are out of reach.

    That is path -> kind of the layer that runs them step by step.
    """
    everything, places = {}, {}
    for path, layer, wrapper in _layers_inside(model):
        # Only functional models see to it that names are unique.
        copies = sum(1 for other in everything if other.partition("@")[0] == path)
        path = f"{path}@{copies + 1}" if copies else path
        everything[path] = layer
        if wrapper is not None:
            places[path] = wrapper
    return everything, places


def said_of(hidden):
    """What is said of layers that are out of reach, path -> where they are."""
    where = " and ".join(dict.fromkeys(hidden.values()))
    return f"The layers {list(hidden)} are inside {where}, where outputs cannot be recorded"


def listed(layers):
    """What was chosen, as a list: one choice may stand alone."""
    return [layers] if isinstance(layers, str | type) or callable(layers) else layers


def _fits(choice, path, layer):
    if isinstance(layer, keras.layers.TimeDistributed):
        layer = layer.layer
    if isinstance(choice, str):
        return choice in (path, layer.name)
    if isinstance(choice, keras.Layer):
        return choice is layer
    if isinstance(choice, type):
        return isinstance(layer, choice)
    return bool(choice(layer))


def _layers_inside(layer, prefix="", wrapper=None, seen=None):
    """Yields (path, layer, wrapper) for everything inside `layer`, each layer once.

    The wrapper is the kind of layer, if any, that runs it step by step, out of reach in a loop.
    """
    seen = {id(layer)} if seen is None else seen
    # Keras has no public list of the layers inside a layer that is no model.
    for child in layer._flatten_layers(include_self=False, recursive=False):
        if id(child) in seen or isinstance(child, keras.layers.InputLayer):
            continue
        seen.add(id(child))
        path, around, inner = prefix + child.name, wrapper, wrapper
        if isinstance(child, keras.layers.TimeDistributed):
            seen.add(id(child.layer))
            path = f"{path}/{child.layer.name}"
            inner = wrapper or "TimeDistributed"
            around = wrapper if isinstance(child.layer, keras.layers.Dense) else inner
        yield path, child, around
        if isinstance(child, keras.layers.TimeDistributed):
            yield from _layers_inside(child.layer, f"{path}/", inner, seen)
        if isinstance(child, keras.layers.RNN):
            inner = wrapper or type(child).__name__
        yield from _layers_inside(child, f"{path}/", inner, seen)
