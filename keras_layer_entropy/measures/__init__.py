"""Pure formulas: tensors in, numbers out."""

from keras_layer_entropy.measures import logdet, mutual_information, topology
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
    "mutual_information",
    "shannon_entropy",
    "softmax_entropy",
    "state_entropy",
    "topology",
]
