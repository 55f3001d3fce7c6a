"""A profile to test with."""

import dataclasses

import numpy as np

from keras_layer_entropy import EntropyProfile
from keras_layer_entropy.measures import ActivationEntropy


def make(**changes):
    """Four layers, three classes, one of them without samples."""
    values = dict(
        layers=("a", "b", "c", "out"),
        widths=(4, 4, 4, 3),
        is_output=(False, False, False, True),
        classes=("x", "y", "z"),
        count=[5, 0, 7],
        results={
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
    )
    return EntropyProfile(**values | changes)


def with_patterns(patterns, **changes):
    """The same with activation patterns, layer -> `[classes, units]`."""
    details = {layer: {"pattern": pattern} for layer, pattern in patterns.items()}
    profile = make(**changes)
    entropy = dataclasses.replace(profile["activation_entropy"], details=details)
    results = {**profile.results, "activation_entropy": entropy}
    measure = ActivationEntropy(keep_patterns=True)
    measures = {**profile.measures, "activation_entropy": measure}
    return dataclasses.replace(profile, results=results, measures=measures)
