"""Settings for every test."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import collections
import sys

import numpy as np
import pytest

collect_ignore = ["mutants.py"]  # a command of its own, with packages of its own
_fits = collections.Counter()  # what tests/repeated_fits.py counted, in all processes


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
    registered = dict(keras.saving.get_custom_objects())  # some tests forget them all
    yield
    keras.saving.get_custom_objects().update(registered)
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def float64():
    """Layers that the test makes are in float64."""
    import keras

    before = keras.config.floatx()
    keras.config.set_floatx("float64")
    yield
    keras.config.set_floatx(before)


@pytest.fixture(autouse=True)
def _monitor_beside_every_fit(monkeypatch, request):
    import keras

    once = request.node.get_closest_marker("fits_once") or "FITS_ONCE" in os.environ
    if keras.backend.backend() != "jax" and not once:  # there it records nothing in fit
        from repeated_fits import repeating

        monkeypatch.setattr(keras.Model, "fit", repeating(keras.Model.fit))


def pytest_sessionfinish(session):
    counted = sys.modules["repeated_fits"].tally if "repeated_fits" in sys.modules else {}
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["fits"] = dict(counted)
    else:
        _fits.update(counted)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    _fits.update(getattr(node, "workeroutput", {}).get("fits", {}))


def pytest_terminal_summary(terminalreporter):
    if _fits:
        terminalreporter.section("every fit once more, plain and beside a monitor")
    for words, count in sorted(_fits.items()):
        terminalreporter.line(f"{count} fits {words}")


@pytest.fixture
def random():
    return np.random.default_rng(0)
