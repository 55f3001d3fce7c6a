"""Whether a search goes on with the data that it began with."""

import numpy as np
import pytest

from keras_layer_entropy.pruning.checkpoint import data_fingerprint

pytestmark = pytest.mark.tensorflow  # no backend in it


def test_texts_are_known_by_what_they_say():
    """An array of objects holds addresses, which are others in every run."""

    def texts(*words):
        return np.array(["".join(word) for word in words], dtype=object), np.arange(len(words))

    one, same, other = (texts(*words) for words in (["abc", "d"], ["abc", "d"], ["abc", "e"]))
    assert data_fingerprint(one) == data_fingerprint(same)
    assert data_fingerprint(one) != data_fingerprint(other)
    made = np.array([("x" * n) for n in (1500, 2000)], dtype=object)
    again = np.array([("x" * n) for n in (1500, 2000)], dtype=object)
    assert made[0] is not again[0]
    assert data_fingerprint((made,)) == data_fingerprint((again,))
