"""A profile as people read it: a table on the terminal, files in a folder, one HTML page."""

from keras_layer_entropy.report.files import FILES, check_new, check_new_file, save_profile
from keras_layer_entropy.report.page import write_report
from keras_layer_entropy.report.plan import PLAN_NOTE, plan_lines
from keras_layer_entropy.report.pruning import Pruning, Thinning
from keras_layer_entropy.report.tables import comparison, layer_value_tables, table
from keras_layer_entropy.report.verdict import summary

__all__ = [
    "FILES",
    "PLAN_NOTE",
    "Pruning",
    "Thinning",
    "check_new",
    "check_new_file",
    "comparison",
    "layer_value_tables",
    "plan_lines",
    "save_profile",
    "summary",
    "table",
    "write_report",
]
