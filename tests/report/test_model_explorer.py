"""Files for Model Explorer, read by the classes of the real package."""

import dataclasses
import json
import types
import typing

import keras
import numpy as np
import pytest
from keras import layers
from model_explorer import graph_builder, node_data_builder

from keras_layer_entropy import analyze_model

MEASURES = ["activation_entropy", "activation_health"]


class Doubled(layers.Layer):
    """A layer with a code of its own, and two Dense layers inside."""

    def __init__(self, **options):
        super().__init__(**options)
        self.first, self.second = layers.Dense(4, name="first"), layers.Dense(4, name="second")

    def build(self, shape):
        self.first.build(shape)
        self.second.build(shape)

    def call(self, x):
        return self.first(x) + self.second(x)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__(name="coded")
        self.hidden, self.scores = layers.Dense(4, name="hidden"), layers.Dense(3, name="scores")

    def call(self, x):
        return self.scores(self.hidden(x))


def read(kind, value):
    """A value as an annotation of the package says it is; fails where it is not."""
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind, vars(typing.cast(typing.Any, MODULES[kind])))
        assert value.keys() <= hints.keys(), set(value) - set(hints)
        return kind(**{name: read(hints[name], part) for name, part in value.items()})
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is list:
        return [read(arguments[0], part) for part in value]
    if origin is dict:
        return {name: read(arguments[1], part) for name, part in value.items()}
    if origin in (typing.Union, types.UnionType):
        for argument in arguments:
            try:
                return read(argument, value)
            except (AssertionError, AttributeError, TypeError):
                continue
        raise AssertionError(f"{value!r} is no {kind}")
    if origin is typing.Literal:
        assert value in arguments
        return value
    assert type(value) is kind, (value, kind)
    return value


MODULES = {
    x: module
    for module in (graph_builder, node_data_builder)
    for x in vars(module).values()
    if dataclasses.is_dataclass(x)
}


def written(model, directory, measures=MEASURES):
    """What the package reads: a profile, nodes by their ids, and name -> node data."""
    shapes = [tensor.shape[1:] for tensor in model.inputs]
    rng = np.random.default_rng(0)
    x = [rng.normal(size=(30, *shape)).astype("float32") for shape in shapes]
    data = x if len(x) > 1 else x[0], np.arange(30) % 3
    profile = analyze_model(model, data, measures=measures, num_classes=3)
    graph, *numbers = profile.to_model_explorer(directory, model)
    (graph,) = read(graph_builder.GraphCollection, json.loads(graph.read_text())).graphs
    found = {}
    for path in numbers:
        content = json.loads(path.read_text())
        assert list(content) == [graph.id]
        found[path.stem] = read(node_data_builder.GraphNodeData, content[graph.id])
    return profile, {node.id: node for node in graph.nodes}, found


def attributes(node):
    return {pair.key: pair.value for pair in node.attrs}


@pytest.fixture
def model():
    """Branches, a shared layer, a nested model, a layer with a code of its own."""
    keras.utils.set_random_seed(0)
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    shared = layers.Dense(4, "relu", name="shared")
    inner = keras.Sequential(
        [keras.Input((4,)), layers.Dense(4, "tanh", name="inside")], name="nested"
    )
    joined = layers.Add(name="joined")([shared(a), shared(b)])
    own = Doubled(name="own")(inner(joined))
    return keras.Model([a, b], layers.Dense(3, name="scores")(own), name="branches")


def test_the_graph_is_the_models(model, tmp_path):
    profile, nodes, _ = written(model, tmp_path)
    edges = {
        name: [edge.sourceNodeId for edge in node.incomingEdges] for name, node in nodes.items()
    }
    assert edges == {
        "a": [], "b": [], "shared": ["a"], "shared#2": ["b"],
        "joined": ["shared", "shared#2"], "nested/inside": ["joined"],
        "own": ["nested/inside"], "scores": ["own"],
        "own/first": [], "own/second": [],
    }  # fmt: skip
    groups = {name: node.namespace for name, node in nodes.items() if node.namespace}
    assert groups == {
        "nested/inside": "nested", "own": "own", "own/first": "own", "own/second": "own"
    }  # fmt: skip
    assert nodes["shared#2"].label == "shared#2"
    assert attributes(nodes["shared"]) == {
        "kind": "Dense", "parameters": "20", "activation": "relu"
    }  # fmt: skip
    (tensor,) = nodes["scores"].outputsMetadata
    assert {x.key: x.value for x in tensor.attrs} == {
        "tensor_shape": "(None, 3)", "dtype": "float32"
    }  # fmt: skip
    assert set(profile.layers) <= set(nodes)


def test_numbers_are_those_of_the_profile(model, tmp_path):
    profile, nodes, found = written(model, tmp_path)
    entropies = dict(zip(profile.layers, profile.mean, strict=True))
    values = {name: x.value for name, x in found["activation_entropy"].results.items()}
    assert values == pytest.approx(entropies, rel=1e-3)  # four digits are written
    # Of ReLU and linear layers nothing saturates, so that nothing is told of them.
    assert found["activation_health_saturated"].results.keys() == {"nested/inside"}
    stops = [item.stop for item in found["activation_entropy"].gradient]
    assert stops == [0.0, 0.5, 1.0]


def test_of_a_subclassed_model_the_layers_alone(tmp_path):
    model = Subclassed()
    model(np.zeros((1, 4), "float32"))
    x = np.random.default_rng(0).normal(size=(30, 4)).astype("float32")
    profile = analyze_model(model, (x, np.arange(30) % 3))
    path, *_ = profile.to_model_explorer(tmp_path / "new", model)
    (graph,) = read(graph_builder.GraphCollection, json.loads(path.read_text())).graphs
    assert [node.id for node in graph.nodes] == ["hidden", "scores"]
    assert not any(node.incomingEdges for node in graph.nodes)


def test_nothing_is_overwritten_untold(model, tmp_path):
    (tmp_path / "graph.json").write_text("mine")
    with pytest.raises(FileExistsError, match="graph.json in .* would be overwritten"):
        written(model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["graph.json"]
    assert (tmp_path / "graph.json").read_text() == "mine"


def test_of_another_model(model, tmp_path):
    profile, *_ = written(model, tmp_path)
    profile.to_model_explorer(tmp_path, model, overwrite=True)
    other = keras.Sequential([keras.Input((4,)), layers.Dense(3)], name="other")
    with pytest.raises(ValueError, match="'other' has no layer 'shared'"):
        profile.to_model_explorer(tmp_path / "none", other)
    assert not (tmp_path / "none").exists()
