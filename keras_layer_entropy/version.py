"""The version of this library, and of what it runs on."""

import platform

import keras

from keras_layer_entropy import backend

__version__ = "0.2.0"


def versions() -> dict[str, str]:
    """Name -> version of what a measurement ran on.

    Example:

    >>> "keras" in versions()
    True
    """
    return {
        "keras_layer_entropy": __version__,
        "keras": keras.version(),
        backend.name(): backend.version(),
        "python": platform.python_version(),
    }
