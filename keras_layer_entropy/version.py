"""The version of this library, and of what it runs on."""

import importlib.metadata
import platform

import keras

__version__ = "0.1.0"


def versions():
    """Name -> version of what a measurement ran on.

    Example:

    >>> "keras" in versions()
    True
    """
    backend = keras.backend.backend()
    return {
        "keras_layer_entropy": __version__,
        "keras": keras.version(),
        backend: importlib.metadata.version(backend),
        "python": platform.python_version(),
    }
