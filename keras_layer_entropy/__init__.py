"""See what the layers of a Keras network do, from the entropy of their activation patterns."""

from keras_layer_entropy.quiet import starting

with starting():  # TensorFlow, if that is the backend
    import keras as _  # noqa: F401

from keras_layer_entropy import measures, plots
from keras_layer_entropy.analysis.analyzer import EntropyAnalyzer, analyze_model, analyze_units
from keras_layer_entropy.analysis.monitor import EntropyMonitor
from keras_layer_entropy.analysis.partial import PartialAnalysis
from keras_layer_entropy.analysis.profile import EntropyProfile
from keras_layer_entropy.analysis.unit_profile import UnitProfile
from keras_layer_entropy.comparing import Comparison, compare
from keras_layer_entropy.model_files import load_model, save_model
from keras_layer_entropy.pruning import (
    PruningOptions,
    PruningResult,
    choose_blocks,
    choose_units,
    prune_model,
    remove_blocks,
    remove_layer,
    remove_units,
    simplify_model,
)
from keras_layer_entropy.recording.probe import ActivationProbe
from keras_layer_entropy.version import __version__

__all__ = [
    "ActivationProbe",
    "Comparison",
    "EntropyAnalyzer",
    "EntropyMonitor",
    "EntropyProfile",
    "PartialAnalysis",
    "PruningOptions",
    "PruningResult",
    "UnitProfile",
    "__version__",
    "analyze_model",
    "analyze_units",
    "choose_blocks",
    "choose_units",
    "compare",
    "load_model",
    "measures",
    "plots",
    "prune_model",
    "remove_blocks",
    "remove_layer",
    "remove_units",
    "save_model",
    "simplify_model",
]
