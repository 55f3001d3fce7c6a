"""What tests do in another way on each backend."""

import keras
import pytest


def some_on_each(values, on_each):
    """All of them on TensorFlow, those in `on_each` on other backends too."""
    missing = [value for value in on_each if value not in values]
    assert not missing, f"{missing} are not among {values}"
    return [
        value if value in on_each else pytest.param(value, marks=pytest.mark.tensorflow)
        for value in values
    ]


def compiled(function, jit=True):
    """A function of tensors, compiled; as it is on PyTorch, which compiles nothing here."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return jax.jit(function)
    if backend == "torch":
        return function
    import tensorflow as tf

    return tf.function(function, jit_compile=jit)


def trained_on(model, loss_of):
    """One step of gradients of `loss_of()` by a model's optimizer, as an own step has it; the loss.

    On TensorFlow and PyTorch.
    """
    if keras.backend.backend() == "torch":
        import torch

        model.zero_grad()
        loss = loss_of()
        loss.backward()
        with torch.no_grad():
            gradients = [v.value.grad for v in model.trainable_variables]
            model.optimizer.apply(gradients, model.trainable_variables)
        return loss.detach()
    import tensorflow as tf

    with tf.GradientTape() as tape:
        loss = loss_of()
    gradients = tape.gradient(loss, model.trainable_variables)
    model.optimizer.apply(gradients, model.trainable_variables)
    return loss
