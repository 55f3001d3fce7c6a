"""The calls of a model one after the other, each on all samples: what each is given and gives."""

import collections
import tempfile

import keras
import numpy as np
from keras import ops
from keras.src.backend.common.masking import get_keras_mask, set_keras_mask

from keras_layer_entropy.recording.graph import flat_graph, opened, run


class Walk:
    """The tensors of a model for some samples, as its calls are made one after the other.

    A tensor is a list of arrays, one for each batch, and is forgotten when no later call takes it;
    a mask that it has goes with it. Of what calls gave a GiB is held in memory, and the rest lies
    in temporary files.

    Args:
        model: a built Sequential or functional model.
        inputs: what `inputs_of` gave for it.
    """

    def __init__(self, model, inputs):
        self.graph = flat_graph(model)
        self._values = dict(enumerate(inputs))
        self._masks = {}
        self._sizes = collections.Counter()  # in memory
        self._wanted = collections.Counter(x for call in self.graph.calls for x in call.inputs)
        self._wanted.update(self.graph.outputs)

    def given(self, call):
        """What a call is given: for each input, a list of batches; None where it is not known."""
        return [self._values.get(number) for number in call.inputs]

    def value(self, number):
        """A tensor by its number, None where it is not known now."""
        return self._values.get(number)

    def batches(self, call):
        """Yields what a call is given, a list for each batch, with masks where there are any."""
        masks = [self._masks.get(number) for number in call.inputs]
        for index, values in enumerate(zip(*self.given(call), strict=True)):
            yield [
                masked(value, mask and mask[index])
                for value, mask in zip(values, masks, strict=True)
            ]

    def make(self, call):
        """Makes a call."""
        self.put(call, (run(call, values) for values in self.batches(call)))

    def put(self, call, made):
        """Goes on with what a call gives, of each batch a list."""
        for number in call.outputs:
            self._values[number] = []
        for parts in made:
            for number, part in zip(call.outputs, parts, strict=True):
                self._values[number].append(self._held(number, array_of(part)))
                mask = mask_of(part)
                if mask is not None:
                    self._masks.setdefault(number, []).append(array_of(mask))
        self.forget(call)

    def _held(self, number, array):
        """An array of a tensor, in memory or in a file that is gone when the array is."""
        if not array.nbytes or sum(self._sizes.values()) + array.nbytes <= MOST:
            self._sizes[number] += array.nbytes
            return array
        with tempfile.TemporaryFile() as file:
            held = np.memmap(file, array.dtype, "w+", shape=array.shape)
        held[...] = array
        return held

    def take(self, call, other, same):
        """Lets a call give what one that is the `same` gives in another walk."""
        for number, theirs in zip(call.outputs, same.outputs, strict=True):
            self._values[number] = other.value(theirs)
            if theirs in other._masks:
                self._masks[number] = other._masks[theirs]
        self.forget(call)

    def forget(self, call):
        """Lets go of tensors that no later call takes; called after each call."""
        for number in call.inputs:
            self._wanted[number] -= 1
        for number in (*call.inputs, *call.outputs):
            if not self._wanted[number]:
                for known in (self._values, self._masks, self._sizes):
                    known.pop(number, None)


def inputs_of(model, source):
    """The inputs of a model, each a list of arrays, one for each batch.

    Args:
        model: a built Sequential or functional model; where it takes batches of one size, samples
            that fill none are left out.
        source: `passes.Source`.

    Raises:
        ValueError: samples of several sizes, or too few for a batch.
    """
    functional = opened(model)
    fixed = functional.inputs[0].shape[0]
    copies = keras.Model(functional._inputs_struct, list(functional.inputs))
    keywords = {k: v for k, v in source.keywords.items() if k in ("x", "batch_size")}
    found = copies.predict(**keywords, steps=source.steps, verbose=0)
    found = found if isinstance(found, list) else [found]
    if any(not isinstance(array, np.ndarray) for array in found):
        raise ValueError("The samples of the calibration data are of several sizes: make them one.")
    size, samples = fixed or _BATCH, len(found[0])
    if fixed:  # the model takes no others
        samples -= samples % fixed
    if not samples:
        raise ValueError(f"{model.name!r} takes batches of {fixed} samples; there are fewer.")
    return [[array[i : i + size] for i in range(0, samples, size)] for array in found]


_BATCH = 128  # samples at a time
MOST = 2**30  # bytes of tensors in memory


def batch_of(model, x, size):
    """The inputs of a model for one batch, a sample or more over and over: what `Walk` takes.

    Args:
        model: a built Sequential or functional model.
        x: inputs, one sample or more.
        size: number of samples; where the model takes batches of one size, that.
    """
    functional = opened(model)
    samples = functional.inputs[0].shape[0] or size
    batch = keras.tree.map_structure(
        lambda part: np.resize(part, (samples, *np.shape(part)[1:])), x
    )
    return [[part] for part in functional._standardize_inputs(batch)]


def array_of(tensor):
    """A tensor as an array of NumPy."""
    return np.asarray(ops.convert_to_numpy(tensor))


def mask_of(tensor):
    """The mask of what a call gave, or None; a later call that takes it may forget it."""
    return get_keras_mask(tensor)


def masked(value, mask):
    """An array as a tensor with a mask; as it is without one."""
    if mask is None:
        return value
    tensor = ops.convert_to_tensor(value)
    set_keras_mask(tensor, ops.convert_to_tensor(mask))
    return tensor
