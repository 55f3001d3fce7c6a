"""Two profiles, models or searches side by side."""

from keras_layer_entropy.comparing.kinds import compare
from keras_layer_entropy.report.side_by_side import Comparison, Section

__all__ = ["Comparison", "Section", "compare"]
