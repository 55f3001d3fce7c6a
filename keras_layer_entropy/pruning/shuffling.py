"""Arrays in a new order in every epoch."""

import math

import keras
import numpy as np
from keras import tree


class Shuffled(keras.utils.PyDataset):
    """Batches of arrays for `fit`, in another order in every epoch, which the seed decides.

    `fit` on TensorFlow shuffles arrays too, but in the same order in every epoch once
    `keras.utils.set_random_seed` was called (Keras 3.15), and networks learn that order.

    Args:
        data: `(x, y)` or `(x, y, sample_weight)`, arrays or nested arrays.
        batch_size: samples per batch.
        seed: seed of the orders.

    Example:

    >>> data = Shuffled((np.arange(6), np.arange(6)), batch_size=4, seed=0)
    >>> len(data), [len(data[i][0]) for i in range(2)]
    (2, [4, 2])
    """

    def __init__(self, data, batch_size, seed=0):
        super().__init__()
        self._data = tree.lists_to_tuples(data)  # tf.data takes no lists of inputs
        self._batch_size = batch_size
        self._random = np.random.default_rng(seed)
        self.on_epoch_end()

    def __len__(self):
        return math.ceil(len(self._order) / self._batch_size)

    def __getitem__(self, index):
        rows = self._order[index * self._batch_size :][: self._batch_size]
        return tree.map_structure(lambda array: array[rows], self._data)

    def on_epoch_end(self):
        self._order = self._random.permutation(len(tree.flatten(self._data)[0]))
