"""A profile to test with."""

import numpy as np

from keras_layer_entropy import EntropyProfile


def make(**changes):
    """Four layers, three classes, one of them without samples."""
    values = dict(
        layers=("a", "b", "c", "out"),
        units=(4, 4, 4, 3),
        outputs=(False, False, False, True),
        classes=("x", "y", "z"),
        count=[5, 0, 7],
        normalizer=np.log([4, 4, 4, 3]),
        values={
            "activation_entropy": [
                [0.9, np.nan, 0.7],
                [0.9, np.nan, 0.695],
                [0.95, np.nan, 0.8],
                [0.1, np.nan, 0.2],
            ],
            "state_entropy": np.full((4, 3), 0.5),
        },
        metrics={"loss": 0.5, "odd": float("nan")},
        epoch=3,
        settings={"pattern": "mean_then_softmax", "normalization": "log"},
    )
    return EntropyProfile(**values | changes)
