"""Take layers out of a model, refit what is left, retrain, and keep what is as good."""

from keras_layer_entropy.pruning.block_plan import choose_blocks
from keras_layer_entropy.pruning.blocks import remove_blocks
from keras_layer_entropy.pruning.cost import Cost, compare_costs
from keras_layer_entropy.pruning.criteria import CRITERIA, rank_units
from keras_layer_entropy.pruning.flops import Flops, count_flops
from keras_layer_entropy.pruning.options import PruningOptions
from keras_layer_entropy.pruning.parts import Part, Plan, Prediction
from keras_layer_entropy.pruning.qualities import Quality, choose_quality
from keras_layer_entropy.pruning.search import PruningResult, plan, prune_model, score
from keras_layer_entropy.pruning.simplify import simplify_model
from keras_layer_entropy.pruning.standing import PruningStep
from keras_layer_entropy.pruning.surgery import remove_layer
from keras_layer_entropy.pruning.unit_criteria import UNIT_CRITERIA
from keras_layer_entropy.pruning.unit_plan import choose_units
from keras_layer_entropy.pruning.units import remove_units

__all__ = [
    "CRITERIA",
    "UNIT_CRITERIA",
    "Cost",
    "Flops",
    "Part",
    "Plan",
    "Prediction",
    "PruningOptions",
    "PruningResult",
    "PruningStep",
    "Quality",
    "choose_blocks",
    "choose_quality",
    "choose_units",
    "compare_costs",
    "count_flops",
    "plan",
    "prune_model",
    "rank_units",
    "remove_blocks",
    "remove_layer",
    "remove_units",
    "score",
    "simplify_model",
]
