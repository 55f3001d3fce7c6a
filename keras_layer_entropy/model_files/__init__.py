"""Open models and save them whole."""

from keras_layer_entropy.model_files.formats import model_format
from keras_layer_entropy.model_files.inspection import UnsafeModelError
from keras_layer_entropy.model_files.opening import load_model, objects_of, weights_of
from keras_layer_entropy.model_files.store import (
    FILE_SUFFIXES,
    custom_objects,
    dataset_record,
    model_parts,
    save_model,
)

__all__ = [
    "FILE_SUFFIXES",
    "UnsafeModelError",
    "custom_objects",
    "dataset_record",
    "load_model",
    "model_format",
    "model_parts",
    "objects_of",
    "save_model",
    "weights_of",
]
