"""Read a SavedModel directory of Keras 2 without its graph.

The graph is never loaded: loading one can run code. The configuration of the layers is JSON, in
`keras_metadata.pb` (before TensorFlow 2.5 inside `saved_model.pb`), and the weights are in a
checkpoint that also tells which attribute of which object each of them was.
"""

import dataclasses
import functools
import json
import math

import keras
import tensorflow as tf
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import saved_model_pb2, trackable_object_graph_pb2

from keras_layer_entropy.model_files.keras2.configuration import layer, name_of
from keras_layer_entropy.model_files.keras2.rebuilding import Parts, fill
from keras_layer_entropy.model_files.keras2.training import OptimizerState

# Attributes that have another name in Keras 3.
_DEPTHWISE = {"depthwise_kernel": "kernel"}
_RENAMED = {keras.layers.DepthwiseConv1D: _DEPTHWISE, keras.layers.DepthwiseConv2D: _DEPTHWISE}
# What a checkpoint holds beside weights: bookkeeping, running metrics, states of random numbers.
_NOT_WEIGHTS = ("keras_api", "save_counter", "_random_generator", "optimizer", "signatures")
# Lists of what is elsewhere, too, in an order of Keras 2's.
_SUMMARIES = ("variables", "trainable_variables", "non_trainable_variables", "weights",
              "trainable_weights", "non_trainable_weights", "layers", "losses", "metrics",
              "regularization_losses")  # fmt: skip


def read(path):
    """A SavedModel directory as `Parts`.

    Args:
        path: the directory.

    Raises:
        ValueError: it holds no Keras layers, or is damaged.
    """
    metadata = _metadata(path)
    root = metadata.get("root")
    if root is None:
        raise ValueError(
            f"{path} is an export without layers (a SavedModel with functions only): nothing in "
            "it tells what its layers are. Save the model itself, model.save('model.keras')."
        )
    if root.get("config") is None or not root.get("is_graph_network", True):
        raise ValueError(
            f"{path} is a {root['class_name']}, a subclassed model: its layers are there, but how "
            "they are called is only in its code. Rebuild it there and save its weights."
        )
    _check_agreement(metadata, path)
    config = dict(root["config"])
    if root["class_name"] == "Sequential":
        config.setdefault("build_input_shape", root.get("build_input_shape"))
    training = root.get("training_config")
    tree = _Checkpoint.open(path / "variables" / "variables", metadata)
    return Parts(
        layer({"class_name": root["class_name"], "config": config}),
        training,
        functools.partial(_restore, tree),
    )


@functools.cache
def _saved_metadata():
    """The message class of keras_metadata.pb, of which only these fields are needed."""
    file = descriptor_pb2.FileDescriptorProto(name="keras_saved_metadata.proto", package="kle")
    field = descriptor_pb2.FieldDescriptorProto
    node = file.message_type.add(name="SavedObject")
    for number, name in ((3, "node_path"), (5, "metadata")):
        node.field.add(name=name, number=number, type=field.TYPE_STRING, label=1)
    nodes = file.message_type.add(name="SavedMetadata").field.add(name="nodes", number=1, label=3)
    nodes.type, nodes.type_name = field.TYPE_MESSAGE, ".kle.SavedObject"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("kle.SavedMetadata"))


def _metadata(path):
    """Path of each Keras object in the tree ("root.layer-0") -> what was written about it."""
    file = path / "keras_metadata.pb"
    try:
        if file.is_file():
            nodes = _saved_metadata().FromString(file.read_bytes()).nodes
            texts = {node.node_path: node.metadata for node in nodes}
        else:
            texts = _metadata_before_25(path / "saved_model.pb")
        return {key: json.loads(text) for key, text in texts.items() if text.startswith("{")}
    except (DecodeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error}.") from error


def _metadata_before_25(file):
    graphs = saved_model_pb2.SavedModel.FromString(file.read_bytes()).meta_graphs
    nodes = graphs[0].object_graph_def.nodes if graphs else ()
    texts, todo = {}, [(0, "root")] if nodes else []
    seen = set()
    while todo:
        at, where = todo.pop(0)
        if at in seen or at >= len(nodes):
            continue
        seen.add(at)
        texts[where] = nodes[at].user_object.metadata
        todo += [(child.node_id, f"{where}.{child.local_name}") for child in nodes[at].children]
    return texts


def _check_agreement(metadata, path):
    """Configurations are written twice and have no checksum: both have to say the same."""
    for about in metadata.values():
        other = about.get("model_config") or {}
        if not _agree(about.get("config"), other.get("config")):
            raise ValueError(f"{path} is damaged: {about.get('name')!r} is described in two ways.")


def _agree(mine, other):
    """Whether both say the same where both say something."""
    if isinstance(mine, dict) and isinstance(other, dict):
        return all(_agree(mine[key], other[key]) for key in mine.keys() & other.keys())
    if isinstance(mine, list) and isinstance(other, list):
        return len(mine) == len(other) and all(map(_agree, mine, other))
    return mine is None or other is None or mine == other


@dataclasses.dataclass(frozen=True)
class _Checkpoint:
    """The tree of objects that was saved, and its numbers."""

    reader: object
    nodes: object
    names: dict  # node -> name of the Keras layer that it is

    @classmethod
    def open(cls, prefix, metadata):
        try:
            reader = tf.train.load_checkpoint(str(prefix))
            _check_sizes(reader, prefix)
            text = reader.get_tensor("_CHECKPOINTABLE_OBJECT_GRAPH")
            nodes = trackable_object_graph_pb2.TrackableObjectGraph.FromString(text).nodes
        except (tf.errors.OpError, ValueError, RuntimeError, DecodeError) as error:
            first = str(error).partition("\n")[0]
            raise ValueError(f"The checkpoint {prefix} cannot be read: {first}") from error
        tree = cls(reader, nodes, {})
        for where, about in metadata.items():
            node = tree.find(where.split(".")[1:])
            if node is not None:
                tree.names.setdefault(node, name_of(about.get("name", "")))
        return tree

    def children(self, node):
        return {child.local_name: child.node_id for child in self.nodes[node].children}

    def find(self, path, node=0):
        for name in path:
            node = self.children(node).get(name)
            if node is None:
                return None
        return node

    def key(self, node):
        """The name of the variable's value in the checkpoint; None if the node is no variable."""
        keys = [a.checkpoint_key for a in self.nodes[node].attributes if a.name == "VARIABLE_VALUE"]
        return keys[0] if keys else None

    def value(self, node):
        try:
            return self.reader.get_tensor(self.key(node))
        except (tf.errors.OpError, ValueError) as error:
            raise ValueError(f"The weight {self.key(node)} is damaged: {error}") from error

    def below(self, node):
        """Every node that can be reached from it."""
        found, todo = set(), [node]
        while todo:
            at = todo.pop()
            if at not in found:
                found.add(at)
                todo += self.children(at).values()
        return found


def _check_sizes(reader, prefix):
    """What is declared has to be there: a few bytes could ask for all memory."""
    types = reader.get_variable_to_dtype_map()
    shapes = reader.get_variable_to_shape_map()
    declared = sum(math.prod(shapes[n]) * types[n].size for n in shapes if types[n] != tf.string)
    there = sum(file.stat().st_size for file in prefix.parent.glob(f"{prefix.name}.data-*"))
    if declared > there:
        raise ValueError(f"{declared:,} bytes are declared, {there:,} are there")


def _restore(tree, model):
    """Gives each weight of the model its value; returns the state of the optimizer."""
    taken = {}
    _match_nodes(tree, 0, model, taken)
    skipped = set()
    for node in range(len(tree.nodes)):
        for name, child in tree.children(node).items():
            if name in _NOT_WEIGHTS:
                skipped |= tree.below(child)
        skipped |= {slot.slot_variable_node_id for slot in tree.nodes[node].slot_variables}
    for node in set(range(len(tree.nodes))) - set(taken) - skipped:
        keys = [attribute.checkpoint_key for attribute in tree.nodes[node].attributes]
        if keys:
            raise ValueError(f"The weight {keys[0]} in the checkpoint has no place in the model.")
    missing = {id(v): v for v in model.weights}
    for variable in taken.values():
        missing.pop(id(variable), None)
    if missing:
        raise ValueError(f"The checkpoint has no {[v.path for v in missing.values()]}.")
    return _optimizer_state(tree, taken)


def _match_nodes(tree, node, target, taken):
    children = tree.children(node)
    if isinstance(target, keras.Model):  # its layers go by their names
        names = {tree.names.get(child): child for child in children.values()}
        parts = [(names.get(part.name), part) for part in target.layers]
    elif isinstance(target, list):
        parts = [(child, target[int(i)]) for i, child in children.items() if int(i) < len(target)]
    else:
        renamed = _RENAMED.get(type(target), {})
        own = {n: c for n, c in children.items() if n not in _SUMMARIES}
        parts = [(c, getattr(target, renamed.get(n, n), None)) for n, c in own.items()]
    for child, part in parts:
        if child is None or child in taken:
            continue
        if isinstance(part, keras.Variable):
            if tree.key(child) is not None:
                fill(part, tree.value(child), tree.key(child))
                taken[child] = part
        elif isinstance(part, keras.Layer | list):
            _match_nodes(tree, child, part, taken)


def _optimizer_state(tree, taken):
    """The state of the optimizer; None if there is none."""
    root = tree.find(["optimizer"])
    if root is None:
        return None
    variables = tree.find(["_variables"], root)
    if variables is not None:
        children = tree.children(variables)
        values = [tree.value(children[str(i)]) for i in range(len(children))]
        return OptimizerState(values[0], in_order=tuple(values[1:])) if values else None
    iterations = tree.find(["iter"], root)  # TensorFlow 2.10 and before
    if iterations is None:
        return None
    slots = {}
    for slot in tree.nodes[root].slot_variables:
        if slot.original_variable_node_id in taken:
            variable = taken[slot.original_variable_node_id]
            value = tree.value(slot.slot_variable_node_id)
            slots.setdefault(slot.slot_name, {})[id(variable)] = value
    return OptimizerState(tree.value(iterations), by_name=slots)
