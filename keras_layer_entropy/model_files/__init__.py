"""Open models and save them whole."""

from keras_layer_entropy.model_files.formats import model_format
from keras_layer_entropy.model_files.store import (
    FILE_SUFFIXES,
    custom_objects,
    dataset_record,
    load_model,
    save_model,
)

__all__ = [
    "FILE_SUFFIXES",
    "custom_objects",
    "dataset_record",
    "load_model",
    "model_format",
    "save_model",
]
