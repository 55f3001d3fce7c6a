"""Pure formulas: tensors in, numbers out."""

from keras_layer_entropy.measures import logdet
from keras_layer_entropy.measures.entropy import (
    activation_entropy,
    activation_pattern,
    binary_entropy,
    instability,
    maximum_entropy,
    shannon_entropy,
    softmax_entropy,
    state_entropy,
)

__all__ = [
    "activation_entropy",
    "activation_pattern",
    "binary_entropy",
    "instability",
    "logdet",
    "maximum_entropy",
    "shannon_entropy",
    "softmax_entropy",
    "state_entropy",
]
