"""Which Dense layers can be taken out of a model, and what goes with them."""

import collections
import dataclasses

import keras

from keras_layer_entropy.pruning.linear import obstacle
from keras_layer_entropy.pruning.parts import Part
from keras_layer_entropy.recording.graph import flat_graph, shared_paths
from keras_layer_entropy.recording.layer_kinds import kind
from keras_layer_entropy.recording.layers import choose_layers


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerPart(Part):
    """A Dense layer and what belongs to it.

    `members` are the layer and the normalisation, activation and dropout after it; `consumers` the
    layers that take what these give, directly or through layers without weights (and
    normalisation), and are refitted: Dense, EinsumDense and convolutions of single points, on the
    last axis.

    Attributes:
        fixed: paths of other layers with weights that take it.
        direct: whether the consumers take the output as it is, once each, and nothing else does.
        input_shape, output_shape: shapes of what goes in and comes out.
    """

    kind: str = "layer"
    fixed: tuple
    direct: bool
    input_shape: tuple
    output_shape: tuple


def removable_layers(model, layers=None, keep=(), refit=True):
    """`(parts, reasons)`: `LayerPart`s that can go, and why the other Dense layers cannot.

    Args:
        model: a built Sequential or functional model; it is not changed.
        layers: which layers may go, as for `ActivationProbe`; None for every `Dense`.
        keep: names or paths of layers that must stay.
        refit: whether what takes their output is to be refitted, so that layers stay where that
            cannot be done.

    Returns:
        Two dicts by path, in the order of the forward pass.

    Raises:
        ValueError: a subclassed model, or no such layer.

    Example:

    >>> names = ("first", "second", "logits")
    >>> dense = [keras.layers.Dense(8, name=name) for name in names]
    >>> parts, reasons = removable_layers(keras.Sequential([keras.Input((4,)), *dense]))
    >>> list(parts), reasons
    (['first', 'second'], {'logits': 'it is an output layer'})
    """
    graph = flat_graph(model)
    chosen = choose_layers(model, layers)
    kept = choose_layers(model, [keep] if isinstance(keep, str) else list(keep)) if keep else {}
    shared = shared_paths(graph)
    obstacles = _obstacles(graph, shared)
    called = dict.fromkeys(call.path for call in graph.calls)
    order = [path for path in called if path in chosen]
    order += [path for path in chosen if path not in called]
    parts, reasons = {}, {}
    for path in order:
        layer = chosen[path]
        reason = "it is to be kept" if path in kept else _reason(graph, path, layer, shared)
        if reason is None:
            found = _part(graph, path, shared, obstacles)
            reason = _misfit(graph, found)
        if reason is None and refit and found.fixed:
            other = found.fixed[0]
            reason = f"{other} takes its output and cannot be refitted: {obstacles[other]}"
        if reason is None:
            parts[path] = found
        else:
            reasons[path] = reason
    return parts, reasons


def layer_part(model, name, refit=True):
    """The `LayerPart` of one layer.

    Args:
        model, refit: as for `removable_layers`.
        name: name or path of a Dense layer.

    Raises:
        ValueError: no such layer, several of this name, or one that cannot go.
    """
    parts, reasons = removable_layers(model, name, refit=refit)
    if len(parts) + len(reasons) > 1:
        raise ValueError(f"{name!r} fits {[*parts, *reasons]}: give the path of one of them.")
    for path, reason in reasons.items():
        raise ValueError(f"{path!r} cannot be taken out of {model.name!r}: {reason}.")
    return next(iter(parts.values()))


def _reason(graph, path, layer, shared):
    """Why a layer cannot go, None if nothing about itself speaks against it."""
    calls = graph.calls_of(path)
    if isinstance(layer, keras.layers.TimeDistributed):
        return "it is inside TimeDistributed (a Dense layer needs no such wrapper)"
    if not isinstance(layer, keras.layers.Dense):
        return f"it is a {type(layer).__name__}, and only Dense layers can be taken out"
    if not calls:
        return "it is inside a subclassed layer, whose call is code that cannot be rewritten"
    if path in shared:
        return f"it is shared: the model calls it {len(calls)} times"
    if getattr(layer, "lora_enabled", False):
        return "it is being fine-tuned with LoRA"
    if getattr(layer, "quantization_mode", None):
        return f"it is quantized ({layer.quantization_mode})"
    *_, outputs = graph.reaches(calls[0].outputs[0], _has_own_weights)
    if outputs:
        return "it is an output layer"
    if sum(isinstance(call.operation, keras.layers.Dense) for call in graph.calls) == 1:
        return "it is the only Dense layer"
    return None


def _obstacles(graph, shared):
    """Path of each layer with weights -> why it cannot be refitted, or None."""
    found = {}
    holders = collections.defaultdict(set)
    for call in graph.calls:
        for variable in getattr(call.operation, "weights", ()):
            holders[id(variable)].add(call.path)
    for variable, path in graph.arguments.items():
        holders[variable].add(path)
    for call in filter(_has_own_weights, graph.calls):
        path = call.path
        others = set().union(*(holders[id(v)] for v in call.operation.weights)) - {path}
        reason = obstacle(call.operation)
        if others:
            reason = f"{sorted(others)[0]} uses its weights, too"
        elif path in shared and _feeds_itself(graph, path):
            reason = "it is shared, and takes what it gave itself"
        found[path] = reason
    return found


def _feeds_itself(graph, path):
    """Whether one call of a layer depends on another of its calls."""
    return any(
        other.path == path
        for call in graph.calls_of(path)
        for other in graph.reaches(call.outputs[0], lambda _: False)[1]
    )


def _part(graph, path, shared, obstacles):
    (call,) = graph.calls_of(path)
    members, tensor = [path], call.outputs[0]
    while True:
        takers = graph.consumers(tensor)
        if len(takers) != 1 or tensor in graph.outputs or takers[0].path in shared:
            break
        if kind(takers[0].operation) not in ("activation", "normalization", "dropout"):
            break
        members.append(takers[0].path)
        tensor = takers[0].outputs[0]
    takers = {c.path for c in graph.consumers(tensor)}
    reached = list(dict.fromkeys(c.path for c in graph.reaches(tensor, _has_own_weights)[0]))
    return LayerPart(
        path=path,
        members=tuple(members),
        consumers=tuple(c for c in reached if obstacles[c] is None),
        fixed=tuple(c for c in reached if obstacles[c] is not None),
        direct=takers == set(reached) and not shared.intersection(reached),
        input_shape=tuple(graph.shapes[call.inputs[0]]),
        output_shape=tuple(graph.shapes[tensor]),
    )


def _misfit(graph, part):
    """Why what takes a part's output cannot take its input instead, or None."""
    if part.input_shape == part.output_shape:
        return None
    widths = f"it goes from {part.input_shape[-1]} to {part.output_shape[-1]} features"
    tensor = graph.calls_of(part.members[-1])[0].outputs[0]
    _, passed, _ = graph.reaches(tensor, _has_own_weights)
    for call in passed:
        if len(call.inputs) > 1 and not isinstance(call.operation, keras.layers.Concatenate):
            return f"{widths}, but feeds {call.path} together with another tensor of that many"
    for path in (*part.fixed, *(c.path for c in passed if getattr(c.operation, "weights", ()))):
        return f"{widths}, and {path} after it has weights for that many and cannot be refitted"
    for call in passed:
        if not _takes_any_width(call.operation):
            return f"{widths}, and {call.path} after it may depend on that"
    return None


def _takes_any_width(operation):
    layers = (keras.layers.Concatenate, keras.layers.Flatten, keras.layers.Identity)
    layers += (keras.layers.GlobalAveragePooling1D, keras.layers.GlobalMaxPooling1D)
    return (
        isinstance(operation, layers)
        or kind(operation) in ("activation", "normalization", "dropout")
        or type(operation).__name__ in ("Add", "Subtract", "Multiply", "Divide")
    )


def _has_own_weights(call):
    return bool(getattr(call.operation, "weights", ())) and kind(call.operation) is None
