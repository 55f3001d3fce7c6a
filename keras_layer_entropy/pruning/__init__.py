"""Take layers out of a model, refit what is left, retrain, and keep what is as good."""

from keras_layer_entropy.pruning.search import (
    PruningOptions,
    PruningResult,
    PruningStep,
    plan,
    prune_model,
)
from keras_layer_entropy.pruning.surgery import remove_layer

__all__ = [
    "PruningOptions",
    "PruningResult",
    "PruningStep",
    "plan",
    "prune_model",
    "remove_layer",
]
