"""Linear layers that stand in for blocks: one for each, cheaper than what it stands in for."""

from typing import Any

import numpy as np
from keras import layers

from keras_layer_entropy.pruning.block_parts import (
    CONVOLUTIONS,
    Block,
    layers_in,
    parameters_of,
)
from keras_layer_entropy.recording.graph import Graph

AUTO = "auto"
_BY_RANK = {3: layers.Conv1D, 4: layers.Conv2D, 5: layers.Conv3D}
_WORTH = 0.5  # of a block's parameters, which a stand-in has at most if nobody asks for it


def check_stand_in(stand_in: object) -> None:
    """Raises for what names no stand-in."""
    odd = type(stand_in) is int and stand_in > 0 and stand_in % 2 == 1
    if not (stand_in is None or stand_in == AUTO or odd):
        raise ValueError(
            f"stand_in={stand_in!r}; expected {AUTO!r}, None for none, or the kernel size of a "
            "convolution, an odd number; 1 is a layer that looks at one place at a time."
        )


def make_stand_in(graph: Graph, block: Block, stand_in: str | int | None) -> Any:
    """A new layer that can stand in for a block; None where none is wanted, or none can.

    It takes what the block takes, and gives what comes out: of a residual branch the sum, so that
    the identity beside the branch is part of its kernel. Where the block has convolutions it is a
    convolution, else a Dense layer.

    Args:
        graph: the graph that the block is in.
        block: `Block`.
        stand_in: kernel size; `"auto"` for the larger of 3 (of blocks that have larger kernels than
            1) and 1 with which it has at most half of the block's parameters, and none where
            neither has; None for none.

    Raises:
        ValueError: one of that kernel size has as many parameters as the block.
    """
    shape = graph.shapes[block.given]
    if stand_in is None or block.form not in ("residual", "composite") or len(shape) < 2:
        return None
    inside = [layer for i in block.calls for layer in layers_in(graph.calls[i].operation)]
    convolutions = [layer for layer in inside if isinstance(layer, CONVOLUTIONS)]
    spatial = bool(convolutions) and len(shape) in _BY_RANK
    layout = convolutions[0].data_format if spatial else "channels_last"
    channels = shape[1 if layout == "channels_first" else -1]
    if channels is None:
        return None
    if not spatial:
        sizes = [1]  # nothing in it looks at the places around
    elif stand_in == AUTO:
        sizes = [3, 1] if any(max(layer.kernel_size) > 1 for layer in convolutions) else [1]
    else:
        sizes = [int(stand_in)]
    limit, total = _WORTH if stand_in == AUTO else 1.0, parameters_of(graph, block.calls)
    places = len(shape) - 2 if spatial else 0  # axes of them
    parameters = {size: channels * (channels * size**places + 1) for size in sizes}
    fitting = [size for size in sizes if parameters[size] <= limit * total]
    if not fitting and stand_in != AUTO:
        raise ValueError(
            f"A stand-in of kernel size {sizes[0]} has {parameters[sizes[0]]:,d} parameters, and "
            f"{block.path!r} itself {total:,d}: pass stand_in='auto', or None for none."
        )
    if not fitting:
        return None
    name = f"{block.path.rpartition('/')[2].replace('#', '_')}_linear"
    policy = inside[0].dtype_policy
    if not spatial:
        return layers.Dense(channels, name=name, dtype=policy)
    return _BY_RANK[len(shape)](
        channels, fitting[0], padding="same", data_format=layout, name=name, dtype=policy
    )


def make_identity(layer: Any) -> None:
    """Gives a stand-in the kernel with which it passes on what it takes."""
    kernel = np.zeros(layer.kernel.shape)
    kernel[(*(n // 2 for n in kernel.shape[:-2]),)] = np.eye(kernel.shape[-1])
    layer.kernel.assign(kernel)
    layer.bias.assign(np.zeros(layer.bias.shape))
