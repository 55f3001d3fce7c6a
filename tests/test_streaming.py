"""What is known of data before a pass, and their first batch."""

import keras
import numpy as np
import pytest

from keras_layer_entropy.streaming import Source

X = np.arange(60, dtype="float32").reshape(20, 3)
Y = np.arange(20) % 3


class Batches(keras.utils.PyDataset):
    def __init__(self, batches, known=True):
        super().__init__()
        self._batches, self._known = batches, known

    def __getitem__(self, index):
        return self._batches[index]

    @property
    def num_batches(self):
        return len(self._batches) if self._known else None


def pairs(tf):
    return tf.data.Dataset.from_tensor_slices((X, Y))


def endless_generator():
    while True:
        yield X[:4], Y[:4]


def of_a_generator(tf):
    signature = (tf.TensorSpec((None, 3)), tf.TensorSpec((None,), tf.int64))
    return tf.data.Dataset.from_generator(endless_generator, output_signature=signature)


ENDLESS = {
    "repeated": lambda tf: pairs(tf).batch(4).repeat(),
    "repeated, mapped, prefetched": lambda tf: (
        pairs(tf).repeat().batch(4).map(lambda *batch: batch).prefetch(2)
    ),
    "PyDataset": lambda tf: Batches([(X, Y)], known=False),
    "drawn from": lambda tf: tf.data.Dataset.sample_from_datasets(
        [pairs(tf).batch(4).repeat()] * 2
    ),
}
NOT_KNOWN = {
    "generator": lambda tf: endless_generator(),
    "iterator": lambda tf: iter([(X, Y)]),
    "data set of a generator": of_a_generator,
    "the same, changed": lambda tf: of_a_generator(tf).unbatch().batch(7).prefetch(1),
    "repeated, filtered": lambda tf: pairs(tf).repeat().filter(lambda x, y: y >= 0).batch(4),
    "repeated inside": lambda tf: (
        tf.data.Dataset.range(3)
        .interleave(lambda i: pairs(tf).filter(lambda x, y: y > 0).repeat())
        .batch(4)
    ),
}
FINITE = {
    "arrays": lambda tf: (X, Y),
    "data set": lambda tf: pairs(tf).batch(4),
    "filtered": lambda tf: pairs(tf).filter(lambda x, y: y > 0).batch(4),
    "filtered, repeated twice, shuffled": lambda tf: (
        pairs(tf).filter(lambda x, y: y > 0).repeat(2).shuffle(5).batch(4)
    ),
    "interleaved": lambda tf: tf.data.Dataset.range(3).interleave(lambda i: pairs(tf)).batch(4),
    "unbatched": lambda tf: pairs(tf).batch(4).unbatch().batch(2),
    "told how long": lambda tf: of_a_generator(tf).apply(
        tf.data.experimental.assert_cardinality(9)
    ),
    "PyDataset": lambda tf: Batches([(X, Y)]),
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_data_that_say_that_they_never_end(kind):
    data = ENDLESS[kind](pytest.importorskip("tensorflow"))
    for must_end in (False, True):
        with pytest.raises(ValueError, match="have no end: pass steps="):
            Source(data, must_end=must_end)
        assert Source(data, steps=3, must_end=must_end).steps == 3


@pytest.mark.parametrize("kind", NOT_KNOWN)
def test_data_of_which_nobody_can_know(kind):
    tf = pytest.importorskip("tensorflow")
    Source(NOT_KNOWN[kind](tf))
    Source(NOT_KNOWN[kind](tf), steps=2, must_end=True)
    with pytest.raises(ValueError, match="Nobody can know.*pass steps="):
        Source(NOT_KNOWN[kind](tf), must_end=True)


@pytest.mark.parametrize("kind", FINITE)
def test_data_that_end(kind):
    Source(FINITE[kind](pytest.importorskip("tensorflow")), must_end=True)
