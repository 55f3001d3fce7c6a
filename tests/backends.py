"""Which parameters of a test prove something on each backend."""

import pytest


def some_on_each(values, on_each):
    """All of them on TensorFlow, those in `on_each` on other backends too."""
    missing = [value for value in on_each if value not in values]
    assert not missing, f"{missing} are not among {values}"
    return [
        value if value in on_each else pytest.param(value, marks=pytest.mark.tensorflow)
        for value in values
    ]
