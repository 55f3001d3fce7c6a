"""The blocks of published architectures, against lists written by hand from their papers and code.

Convolutions of one shape are blocks, too; the lists are of branches, sums and composite layers.
"""

import keras
import numpy as np
import pytest
from keras import layers, ops, tree

from keras_layer_entropy import load_model, remove_blocks, save_model
from keras_layer_entropy.pruning.block_parts import find_blocks


def listed(model):
    """`(blocks, reasons)`: name -> (form, members) of all that is more than a convolution."""
    blocks, reasons = find_blocks(model)
    return {
        name: (block.form, block.members)
        for name, block in blocks.items()
        if block.form != "convolution"
    }, reasons


def application(name):
    make = getattr(keras.applications, name)
    return make(weights=None, input_shape=(32, 32, 3), classes=2)


@pytest.mark.tensorflow  # a graph is the same on all backends
def test_resnet50():
    """Bottlenecks of three convolutions, in stages of 3, 4, 6 and 3; the first one projects."""
    wanted = {}
    for stage, count in ((2, 3), (3, 4), (4, 6), (5, 3)):
        for number in range(1, count + 1):
            name = f"conv{stage}_block{number}"
            parts = "1_conv 1_bn 1_relu 2_conv 2_bn 2_relu 3_conv 3_bn".split()
            form = "projection" if number == 1 else "residual"
            wanted[f"{name}_add"] = form, tuple(f"{name}_{part}" for part in parts)
    assert listed(application("ResNet50")) == (wanted, {})


@pytest.mark.tensorflow  # a graph is the same on all backends
def test_mobilenetv2():
    """Stages of 1, 2, 3, 4, 3, 3 and 1; what is first in a stage has nothing added to it."""
    wanted, first = {}, 0
    for count in (1, 2, 3, 4, 3, 3, 1):
        for number in range(first + 1, first + count):
            parts = ("expand", "expand_BN", "expand_relu", "depthwise", "depthwise_BN",
                     "depthwise_relu", "project", "project_BN")  # fmt: skip
            members = tuple(f"block_{number}_{part}" for part in parts)
            wanted[f"block_{number}_add"] = "residual", members
        first += count
    assert len(wanted) == 10
    assert listed(application("MobileNetV2")) == (wanted, {})


@pytest.mark.tensorflow  # a graph is the same on all backends
def test_convnext_tiny():
    """Stages of 3, 3, 9 and 3; the sums are operators, whose names Keras counts up."""
    wanted = {}
    for stage, count in enumerate((3, 3, 9, 3)):
        for number in range(count):
            parts = ("depthwise_conv", "layernorm", "pointwise_conv_1", "gelu",
                     "pointwise_conv_2", "layer_scale", "identity")  # fmt: skip
            start = f"convnext_tiny_stage_{stage}_block_{number}"
            name = f"add_{len(wanted)}" if wanted else "add"
            wanted[name] = "residual", tuple(f"{start}_{part}" for part in parts)
    assert listed(application("ConvNeXtTiny")) == (wanted, {})


def chain(x, name, steps):
    """What some layers give one after the other, and what they are called."""
    names = []
    for number, layer in enumerate(steps):
        layer.name = f"{name}_{number}"
        x = layer(x, x) if isinstance(layer, layers.MultiHeadAttention) else layer(x)
        names.append(layer.name)
    return x, tuple(names)


def stack(inputs, kinds, depth=4):
    """`(model, wanted)`: `depth` times a branch of each kind beside what goes into it."""
    x, wanted = inputs, {}
    for number in range(depth):
        for kind, make in kinds.items():
            name = f"{kind}_{number}"
            branch, members = chain(x, name, make())
            x = layers.Add(name=f"{name}_sum")([x, branch])
            wanted[f"{name}_sum"] = "residual", members
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return keras.Model(inputs, layers.Dense(3)(x)), wanted


def feed_forward(width, hidden):
    return [layers.Dense(hidden, "gelu"), layers.Dropout(0.1), layers.Dense(width)]


def test_a_transformer_that_is_functional():
    """Attention and feed-forward, normalised before: two blocks in each of four layers."""
    kinds = {
        "attention": lambda: [layers.LayerNormalization(), layers.MultiHeadAttention(2, 4)],
        "mlp": lambda: [layers.LayerNormalization(), *feed_forward(8, 16)],
    }
    model, wanted = stack(keras.Input((5, 8)), kinds)
    assert len(wanted) == 8
    assert listed(model) == (wanted, {})


def test_mlp_mixer():
    """Mixing of tokens and of channels: two blocks in each of four layers."""
    kinds = {
        "tokens": lambda: [
            *(layers.LayerNormalization(), layers.Permute((2, 1))),
            *feed_forward(5, 7),
            layers.Permute((2, 1)),
        ],
        "channels": lambda: [layers.LayerNormalization(), *feed_forward(8, 16)],
    }
    model, wanted = stack(keras.Input((5, 8)), kinds)
    assert len(wanted) == 8
    assert listed(model) == (wanted, {})


DEPTH = 3
SIZES = {"hidden_dim": 16}
TEXT = {**SIZES, "vocabulary_size": 30, "intermediate_dim": 32}
HEADS = {"num_query_heads": 2, "num_key_value_heads": 2}
IDS = np.random.default_rng(0).integers(1, 30, (8, 6)).astype("int32")
MASKED = {"token_ids": IDS, "padding_mask": np.ones((8, 6), "int32")}
IMAGES = np.random.default_rng(0).normal(size=(8, 16, 16, 3)).astype("float32")
LAYERS = {f"transformer_layer_{number}": "composite" for number in range(DEPTH)}

# Options, inputs, blocks, sums and layers that are none.
BACKBONES = {
    "BertBackbone": (
        {**TEXT, "num_heads": 2, "max_sequence_length": 6},
        {**MASKED, "segment_ids": np.zeros((8, 6), "int32")},
        LAYERS,
        ["embeddings_add"],  # of tokens, positions and segments
    ),
    "GPT2Backbone": (
        {**TEXT, "num_heads": 2, "max_sequence_length": 6},
        MASKED,
        {"embeddings_add": "residual", **LAYERS},  # positions are made from the tokens
        [],
    ),
    "LlamaBackbone": ({**TEXT, **HEADS}, MASKED, LAYERS, []),
    "ViTBackbone": (  # all of its layers are inside one
        {**SIZES, "image_shape": (16, 16, 3), "patch_size": 4, "mlp_dim": 32, "num_heads": 2},
        IMAGES,
        {"vit_encoder": "composite"},
        ["vit_patching_and_embedding"],
    ),
}


def backbone(name, depth=DEPTH):
    """A small backbone of keras-hub, whose layers are code of their own."""
    models = pytest.importorskip(
        "keras_hub", reason="keras-hub is not installed: it brings TensorFlow Text, 200 MB"
    ).models
    return getattr(models, name)(num_layers=depth, **BACKBONES[name][0])


def values(model, x):
    """What a model gives, as a list of arrays."""
    return [ops.convert_to_numpy(tensor) for tensor in tree.flatten(model(x))]


def can_be_made_again(layer):
    """Whether a layer can be, from its own configuration; of keras-hub 0.32 not all can."""
    try:
        type(layer).from_config(layer.get_config())
    except (AttributeError, TypeError):
        return False
    return True


@pytest.mark.parametrize("name", BACKBONES)
def test_backbones_of_keras_hub(name):
    _, _, wanted, others = BACKBONES[name]
    found, reasons = listed(backbone(name))
    assert {path: form for path, (form, _) in found.items()} == wanted
    assert all(found[path][1] == (path,) for path, form in wanted.items() if form == "composite")
    assert list(reasons) == others


@pytest.mark.filterwarnings("ignore:Gradients do not exist")  # Llama has weights for words back
@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_without_a_block_is_one_that_has_a_layer_less(name, tmp_path):
    model, (_, x, wanted, _) = backbone(name), BACKBONES[name]
    gone = "vit_encoder" if "vit_encoder" in wanted else "transformer_layer_1"
    with pytest.warns(UserWarning, match="nothing is refitted"):
        smaller = remove_blocks(model, gone)
    if gone == "vit_encoder":
        expected = values(model.get_layer("vit_patching_and_embedding"), x)
    else:
        shallow = backbone(name, DEPTH - 1)
        inside = {id(weight) for weight in model.get_layer(gone).weights}
        left = [weight for weight in model.weights if id(weight) not in inside]
        shallow.set_weights([ops.convert_to_numpy(weight) for weight in left])
        expected = values(shallow, x)
    for given, same in zip(values(smaller, x), expected, strict=True):
        np.testing.assert_array_equal(given, same)  # the same operations on the same numbers

    path = tmp_path / "smaller.keras"
    if all(map(can_be_made_again, smaller.layers)):
        save_model(smaller, path)
        smaller = load_model(path)
        for given, same in zip(values(smaller, x), expected, strict=True):
            np.testing.assert_array_equal(given, same)
    else:
        with pytest.raises(ValueError, match="cannot be"):
            save_model(smaller, path)
        assert not any(tmp_path.iterdir())
    smaller.compile("sgd", "mse", run_eagerly=True)
    before = smaller.get_weights()
    goals = tree.map_structure(np.ones_like, smaller.predict(x, verbose=0))
    assert np.isfinite(smaller.train_on_batch(x, goals)).all()
    moved = [np.any(a != b) for a, b in zip(before, smaller.get_weights(), strict=True)]
    assert any(moved)
