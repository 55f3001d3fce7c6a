"""See what the layers of a Keras network do, from the entropy of their activation patterns."""

from keras_layer_entropy import measures, plots
from keras_layer_entropy.analyzer import EntropyAnalyzer, analyze_model
from keras_layer_entropy.model_files import load_model, save_model
from keras_layer_entropy.monitor import EntropyMonitor
from keras_layer_entropy.probe import ActivationProbe
from keras_layer_entropy.profile import EntropyProfile
from keras_layer_entropy.pruning import PruningResult, prune_model, remove_layer

__all__ = [
    "ActivationProbe",
    "EntropyAnalyzer",
    "EntropyMonitor",
    "EntropyProfile",
    "PruningResult",
    "analyze_model",
    "load_model",
    "measures",
    "plots",
    "prune_model",
    "remove_layer",
    "save_model",
]
__version__ = "0.1.0"
