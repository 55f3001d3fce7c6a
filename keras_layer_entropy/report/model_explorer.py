"""A profile over the graph of its model, as files for Google's Model Explorer."""

import collections
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex

from keras_layer_entropy.files import AnyPath, local_path, replacing
from keras_layer_entropy.measures.measure import Profile
from keras_layer_entropy.recording.graph import Graph, flat_graph, opened
from keras_layer_entropy.recording.layers import every_layer
from keras_layer_entropy.report.files import check_new
from keras_layer_entropy.report.verdict import summary

GRAPH = "graph.json"
_LOOKS = {
    # Pale enough for black words on all of them; what is not known stays white.
    "gradient": [
        {"stop": stop, "bgColor": to_hex(colormaps["Blues"](0.1 + 0.55 * stop))}
        for stop in (0.0, 0.5, 1.0)
    ],
    "hideAggregatedStats": ["sum"],  # which means nothing
    "hideInChildrenStatsTable": True,  # shares of these sums
}


def write_model_explorer(
    profile: Profile, directory: AnyPath, model: keras.Model, overwrite: bool = False
) -> list[pathlib.Path]:
    """Writes the graph of a model, and a file of numbers for each measure, into a folder.

    A node is a call of a layer or an operation; nested models are groups. So are layers with a code
    of their own: the layers inside that were measured stand in them, without edges, which nobody
    knows; of a subclassed model, all do.

    Args:
        profile: `EntropyProfile` of this model.
        directory: made where it does not exist.
        model: what was measured.
        overwrite: replace files of these names.

    Returns:
        The paths: `graph.json`, and of each measure the mean over the classes, `<measure>.json`, or
        what it says of layers as a whole (`MeasureResult.columns`).

    Raises:
        ValueError: the model has not the layers of the profile.
        FileExistsError: one of the files exists and `overwrite` is False; nothing is written.

    Example:

    >>> import tempfile
    >>> from keras_layer_entropy import analyze_model
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="scores")])
    >>> profile = analyze_model(model, (np.ones((6, 4)), np.arange(6) % 3), verbose=0)
    >>> [path.name for path in write_model_explorer(profile, tempfile.mkdtemp(), model)]
    ['graph.json', 'activation_entropy.json']
    """
    everything, _ = every_layer(model)
    measured = {name: everything.get(name.partition("#")[0]) for name in profile.layers}
    if strangers := [name for name, layer in measured.items() if layer is None]:
        raise ValueError(
            f"{model.name!r} has no layer {strangers[0]!r}, of which the profile tells: pass the "
            "model that was measured."
        )
    nodes = _nodes(model, measured)
    told = {
        "model": model.name,
        "samples": f"{int(profile.count.sum()):,}",
        "measured": summary(profile),
    }
    graph = {"id": model.name, "nodes": nodes, "groupNodeAttributes": {"": told}}
    files: dict[str, Any] = {GRAPH: {"label": model.name, "graphs": [graph]}}
    for name, values in _numbers(profile):
        known = dict(zip(profile.layers, values.tolist(), strict=True))
        results = {
            node["id"]: {"value": float(f"{value:.4g}")}
            for node in nodes
            if np.isfinite(value := known.get(node["id"], np.nan))
        }
        data = {"name": name.replace("_", " "), "results": results, **_LOOKS}
        files[f"{name}.json"] = {model.name: data}
    check_new(directory, overwrite, files)
    with replacing(directory) as temporary:
        temporary.mkdir()
        for name, content in files.items():
            (temporary / name).write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    return [local_path(directory) / name for name in files]


def _numbers(profile: Profile) -> Iterator[tuple[str, np.ndarray]]:
    """`(name, [layers])` of every number that is known of a layer."""
    for name, result in profile.results.items():
        for column, values in {name: result.mean, **result.columns(name)}.items():
            if np.isfinite(values).any():
                yield column, values


def _nodes(model: keras.Model, measured: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All nodes: of calls, in the order of the forward pass, then of what is inside them."""
    functional = opened(model)
    nodes = [] if functional is None else list(_calls(flat_graph(model), functional, measured))
    called = {node["id"] for node in nodes}
    inside = {name: layer for name, layer in measured.items() if name not in called}
    return [*nodes, *(_node(name, _parent(name), _facts(x)) for name, x in inside.items())]


def _calls(graph: Graph, functional: Any, measured: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The nodes of inputs and calls, with edges; named as the rows of a profile are."""
    makers: dict[int, tuple[str, int]] = {}
    for number, tensor in enumerate(functional.inputs):
        name = tensor._keras_history.operation.name
        makers[number] = name, 0
        yield _node(name, "", [("kind", "input")], outputs=_tensors(graph, [number]))
    times: collections.Counter[str] = collections.Counter()
    for call in graph.calls:
        times[call.path] += 1
        name = call.path if times[call.path] == 1 else f"{call.path}#{times[call.path]}"
        makers.update({x: (name, place) for place, x in enumerate(call.outputs)})
        # What is inside of a layer is a group, in which the layer itself stands, too.
        around = any(other.startswith(f"{call.path}/") for other in measured)
        edges = [
            {
                "sourceNodeId": makers[x][0],
                "sourceNodeOutputId": str(makers[x][1]),
                "targetNodeInputId": str(place),
            }
            for place, x in enumerate(call.inputs)
        ]
        yield _node(
            name,
            call.path if around else _parent(call.path),
            _facts(call.operation),
            edges,
            _tensors(graph, call.outputs),
        )


def _node(
    name: str,
    group: str,
    facts: Iterable[tuple[str, str]],
    edges: Iterable[dict[str, str]] = (),
    outputs: Iterable[dict[str, Any]] = (),
) -> dict[str, Any]:
    return {
        "id": name,
        "label": name.rpartition("/")[2],
        "namespace": group,
        "attrs": [{"key": key, "value": value} for key, value in facts],
        "incomingEdges": list(edges),
        "outputsMetadata": list(outputs),
    }


def _facts(operation: Any) -> list[tuple[str, str]]:
    """What stands beside a node."""
    facts = [("kind", type(operation).__name__)]
    if isinstance(operation, keras.Layer):
        facts.append(("parameters", f"{operation.count_params():,}"))
    activation = getattr(operation, "activation", None)
    if callable(activation):
        facts.append(("activation", getattr(activation, "__name__", type(activation).__name__)))
    return facts


def _tensors(graph: Graph, numbers: Iterable[int]) -> list[dict[str, Any]]:
    """Shape and dtype of what a node gives, as edges show them."""
    return [
        {
            "id": str(place),
            "attrs": [
                {"key": "tensor_shape", "value": str(graph.shapes[number])},
                {"key": "dtype", "value": str(graph.dtypes[number])},
            ],
        }
        for place, number in enumerate(numbers)
    ]


def _parent(path: str) -> str:
    return path.rpartition("/")[0]
