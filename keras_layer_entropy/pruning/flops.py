"""Floating-point operations of a model, counted from shapes call by call: alike on all backends."""

import dataclasses
from typing import Any

import keras

from keras_layer_entropy.pruning.flop_rules import RULES, UnknownError, count_call, opening
from keras_layer_entropy.pruning.walking import Walk, batch_of
from keras_layer_entropy.recording.graph import Call, flat_graph


@dataclasses.dataclass(frozen=True)
class Flops:
    """The floating-point operations of a model for one sample.

    Attributes:
        per_call: of each call of `flat_graph(model).calls`, None where they are not known.
        unknown: paths of the calls of which they are not known, each once.
    """

    per_call: tuple[int | None, ...]
    unknown: tuple[str, ...]

    @property
    def total(self) -> int:
        """The sum of what is known."""
        return sum(count for count in self.per_call if count is not None)


def count_flops(model: keras.Model, x: Any = None) -> Flops:
    """Floating-point operations of a forward pass of one sample, at inference.

    A multiplication and an addition are two, so that a Dense layer is `2 * inputs * units` at each
    place, and `units` more for a bias. Conventions are those of TensorFlow's profiler where that
    has one:

    - products: of a kernel or a matrix with all that it meets, padding included; recurrent layers
      in all of their steps, transposed convolutions once for each entry that they are given;
    - 1 for each entry of: functions of single entries (ReLU, tanh, GELU, sums and products of
      tensors), whatever they are made of (the profiler counts what they are made of, and most of
      them as nothing); 5 for each entry of a softmax;
    - pooling: 1 for each entry of each window; means, sums and the like 1 for each entry that they
      take, variances 4;
    - normalisation: 2 for each entry by stored statistics; by its own 6 (4 by its root mean square
      alone); 1 more for a scale and 1 for an offset;
    - what moves or looks up numbers (Flatten, Concatenate, Embedding, slices), and Dropout and the
      like at inference: 0, by knowledge;
    - what is computed of weights alone, or once for many entries (a reciprocal root): not counted.

    Args:
        model: a built Sequential or functional model.
        x: inputs, one sample or more, which say how large axes are whose size the model leaves
            open, and what calls that are not known make of the axis of samples; without it these
            are taken to leave that alone.

    Returns:
        `Flops`. Layers that are called several times count in every call; layers of one's own,
        Lambda, subclassed models, quantized layers and whatever else has no rule are unknown.

    Raises:
        ValueError: a subclassed model, or one that is not built; sizes that are open, without x.

    Example:

    >>> dense = keras.layers.Dense
    >>> model = keras.Sequential([keras.Input((4,)), dense(3, "relu", name="a"),
    ...                           keras.layers.Lambda(lambda x: x + 1, name="own"), dense(2)])
    >>> found = count_flops(model)
    >>> found.per_call, found.unknown, found.total
    ((30, None, 14), ('own',), 44)
    """
    graph = flat_graph(model)
    path = opening(graph)
    if path is not None and x is None:
        raise ValueError(
            f"How large the tensors at {path!r} are, {model.name!r} leaves open: pass x, one "
            "sample or more, to count for their sizes."
        )
    plain = path is None and all(type(call.operation) in RULES for call in graph.calls)
    shapes = graph.shapes if x is None or plain else _shapes_for(model, x)
    samples = graph.shapes[0][0] or 1
    per_call = tuple(_known(call, shapes, samples) for call in graph.calls)
    pairs = zip(graph.calls, per_call, strict=True)
    unknown = dict.fromkeys(call.path for call, count in pairs if count is None)
    return Flops(per_call, tuple(unknown))


def _known(call: Call, shapes: dict, samples: int) -> int | None:
    try:
        return count_call(call, shapes) // samples
    except UnknownError:
        return None


def _shapes_for(model: keras.Model, x: Any) -> dict:
    """Number of each tensor -> its shape for one sample, or for a batch of the model's own size."""
    walk = _Shapes(model, batch_of(model, x, 1))
    for call in walk.graph.calls:
        walk.make(call)
    return walk.shapes


class _Shapes(Walk):
    """A walk that keeps the shapes of all tensors."""

    def __init__(self, model: keras.Model, inputs: list) -> None:
        super().__init__(model, inputs)
        self.shapes = {number: batches[0].shape for number, batches in enumerate(inputs)}

    def forget(self, call: Call) -> None:
        self.shapes.update((number, self.value(number)[0].shape) for number in call.outputs)
        super().forget(call)
