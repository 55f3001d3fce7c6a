"""Which units of networks go together and which stay, against lists made by hand."""

import keras
import pytest
from keras import layers
from keras.src.applications.densenet import DenseNet  # any number of blocks
from keras.src.applications.resnet import ResNet, stack_residual_blocks_v1

from keras_layer_entropy.pruning.channels import find_channels

# All of it is calls of Keras; on other backends the example of `find_channels` runs it.
pytestmark = pytest.mark.tensorflow


def groups_of(model):
    """`(those that may go, those that stay)`: sets of names of layers whose units are tied.

    Layers are those with a kernel that give these units, depthwise convolutions too.
    """
    channels = find_channels(model)
    found, stay = [], set()
    for call in channels.graph.calls:
        if not hasattr(call.operation, "kernel"):
            continue
        labels = channels.labels[call.outputs[0]]
        ids = labels[max(labels)]  # channels come last
        group = {call.path}, set(channels.ties.roots(ids).tolist())
        if channels.ties.reasons(ids):
            stay.add(call.path)
            continue
        for other in [other for other in found if other[1] & group[1]]:
            found.remove(other)
            group = other[0] | group[0], other[1] | group[1]
        found.append(group)
    return {frozenset(names) for names, _ in found}, stay


def sets(*groups):
    return {frozenset([group] if isinstance(group, str) else group) for group in groups}


def mobilenet():
    """Expanded channels go with what the depthwise convolution makes of them; the projections of
    blocks between which there are sums go as one."""
    model = keras.applications.MobileNetV2((32, 32, 3), weights=None)
    expanded = [{f"block_{k}_expand", f"block_{k}_depthwise"} for k in range(1, 17)]
    stages = [range(1, 3), range(3, 6), range(6, 10), range(10, 13), range(13, 16), [16]]
    projected = [{f"block_{k}_project" for k in stage} for stage in stages]
    first = [{"Conv1", "expanded_conv_depthwise"}, "expanded_conv_project"]
    return model, sets(*first, *expanded, *projected, "Conv_1"), {"predictions"}


def resnet(blocks=(2, 1, 3, 2)):
    """The last convolutions of a stage and that of its shortcut are summed."""

    def stages(x):
        for stage, n in enumerate(blocks, start=2):
            stride = 1 if stage == 2 else 2
            width = 2 ** (stage + 2)
            x = stack_residual_blocks_v1(x, width, n, stride1=stride, name=f"conv{stage}")
        return x

    model = ResNet(stages, False, True, input_shape=(32, 32, 3), weights=None)
    names = [[f"conv{i}_block{k + 1}" for k in range(n)] for i, n in enumerate(blocks, start=2)]
    summed = [{f"{x[0]}_0_conv", *(f"{block}_3_conv" for block in x)} for x in names]
    inside = [f"{block}_{i}_conv" for x in names for block in x for i in (1, 2)]
    return model, sets("conv1_conv", *summed, *inside), {"predictions"}


def densenet(blocks=(2, 3, 1, 2)):
    """All is concatenated: every convolution goes alone."""
    model = DenseNet(blocks, input_shape=(32, 32, 3), weights=None)
    inside = [
        f"conv{stage}_block{k + 1}_{i}_conv"
        for stage, n in enumerate(blocks, start=2)
        for k in range(n)
        for i in (1, 2)
    ]
    between = [f"pool{stage}_conv" for stage in range(2, 5)]
    return model, sets("conv1_conv", *inside, *between), {"predictions"}


def unet(join):
    """A U-Net of three levels, in which what comes from below meets what was there before."""
    inputs = x = keras.Input((16, 16, 3))
    before = []
    for level, width in enumerate((4, 6, 8)):
        for i in "ab":
            x = layers.Conv2D(width, 3, padding="same", use_bias=False, name=f"down{level}{i}")(x)
            x = layers.ReLU()(layers.BatchNormalization()(x))
        before.append(x)
        x = layers.MaxPooling2D()(x)
    x = layers.Conv2D(10, 3, padding="same", activation="relu", name="bottom")(x)
    for level in (2, 1, 0):
        width = before[level].shape[-1]
        x = layers.Conv2DTranspose(width, 2, strides=2, name=f"up{level}")(x)
        x = join()([x, before[level]])
        for i in "ab":
            x = layers.Conv2D(width, 3, padding="same", activation="relu", name=f"up{level}{i}")(x)
    return keras.Model(inputs, layers.Conv2D(2, 1, name="out")(x))


def concatenated():
    """What is concatenated goes alone."""
    rest = [f"{way}{level}{i}" for way in ("down", "up") for level in range(3) for i in "ab"]
    return unet(layers.Concatenate), sets("bottom", "up0", "up1", "up2", *rest), {"out"}


def summed():
    """What is summed goes together."""
    rest = [f"{name}{level}" for name in ("down", "up") for level in ("0a", "1a", "2a")]
    rest += ["bottom", "up0b", "up1b", "up2b"]
    joined = [{f"down{level}b", f"up{level}"} for level in range(3)]
    return unet(layers.Add), sets(*rest, *joined), {"out"}


def mixer():
    """Sums tie the channels of all blocks to those of the patches, and tokens to what is given."""
    inputs = keras.Input((16, 16, 3))
    x = layers.Reshape((16, 8))(layers.Conv2D(8, 4, strides=4, name="patches")(inputs))
    for k in range(2):
        y = layers.Permute((2, 1))(layers.LayerNormalization()(x))
        y = layers.Dense(16, name=f"tokens{k}b")(layers.Dense(6, "gelu", name=f"tokens{k}a")(y))
        x = layers.Add()([x, layers.Permute((2, 1))(y)])
        y = layers.Dense(12, "gelu", name=f"channels{k}a")(layers.LayerNormalization()(x))
        x = layers.Add()([x, layers.Dense(8, name=f"channels{k}b")(y)])
    x = layers.Dense(3, name="out")(layers.GlobalAveragePooling1D()(x))
    summed = {"patches", "channels0b", "channels1b"}
    inside = [f"{kind}{k}a" for kind in ("tokens", "channels") for k in range(2)]
    return keras.Model(inputs, x), sets(summed, *inside), {"tokens0b", "tokens1b", "out"}


@pytest.mark.slow
@pytest.mark.parametrize("network", [mobilenet, resnet, densenet, concatenated, summed, mixer])
def test_groups_are_those_that_one_reads_off_the_architecture(network):
    model, expected, stay = network()
    found, staying = groups_of(model)
    assert found == expected
    assert staying == stay
