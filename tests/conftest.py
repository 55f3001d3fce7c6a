"""Settings for every test."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Examples of figures and pages run on TensorFlow alone: no backend changes what they show."""
    for item in items:
        if isinstance(item, pytest.DoctestItem) and item.path.parent.name in ("plots", "report"):
            item.add_marker(pytest.mark.tensorflow)


@pytest.fixture(autouse=True)
def _fresh_keras():
    import keras  # not above: the process that hands out the tests needs none, and it takes seconds

    keras.backend.clear_session(free_memory=False)  # collecting garbage takes 0.2 s
    keras.utils.set_random_seed(1)
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def random():
    return np.random.default_rng(0)
