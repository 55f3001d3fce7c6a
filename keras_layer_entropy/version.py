"""The version of this library, and of what it runs on."""

import importlib
import platform

import keras

__version__ = "0.1.1"


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
        # Not the version of its package, which has other names too (tensorflow-cpu).
        backend: importlib.import_module(backend).__version__,
        "python": platform.python_version(),
    }
