"""What is measured: one file for each measure, with its formulas, words, options and state."""

from keras_layer_entropy.measures import (
    births,
    feature_entropy,
    linear_probe,
    logdet,
    mutual_information,
    unit_information,
)
from keras_layer_entropy.measures.activation_histogram import ActivationHistogram
from keras_layer_entropy.measures.entropy import (
    ActivationEntropy,
    Instability,
    StateEntropy,
    activation_entropy,
    activation_pattern,
    binary_entropy,
    instability,
    maximum_entropy,
    shannon_entropy,
    softmax_entropy,
    state_entropy,
)
from keras_layer_entropy.measures.feature_entropy import FeatureEntropy
from keras_layer_entropy.measures.health import ActivationHealth, effective_rank
from keras_layer_entropy.measures.linear_probe import LinearProbe
from keras_layer_entropy.measures.logdet import LogDet
from keras_layer_entropy.measures.measure import Measure, MeasureResult
from keras_layer_entropy.measures.mutual_information import MutualInformation
from keras_layer_entropy.measures.registry import MEASURES
from keras_layer_entropy.measures.thresholds import Alert, Health, find_alerts
from keras_layer_entropy.measures.unit_information import UnitInformation

__all__ = [
    "MEASURES",
    "ActivationEntropy",
    "ActivationHealth",
    "ActivationHistogram",
    "Alert",
    "FeatureEntropy",
    "Health",
    "Instability",
    "LinearProbe",
    "LogDet",
    "Measure",
    "MeasureResult",
    "MutualInformation",
    "StateEntropy",
    "UnitInformation",
    "activation_entropy",
    "activation_pattern",
    "binary_entropy",
    "births",
    "effective_rank",
    "feature_entropy",
    "find_alerts",
    "instability",
    "linear_probe",
    "logdet",
    "maximum_entropy",
    "mutual_information",
    "shannon_entropy",
    "softmax_entropy",
    "state_entropy",
    "unit_information",
]
