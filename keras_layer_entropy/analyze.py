"""python -m keras_layer_entropy.analyze: measure a saved model on a data set.

    python -m keras_layer_entropy.analyze --model saved_model/ --dataset digits --output analysis

prints a table of its layers and, with --output, leaves profile.json, profile.csv, entropy.png and
heatmap.png there. Without --dataset the data set recorded beside the model is used.
"""

import dataclasses
import sys
import warnings

import rich.console
from absl import app, flags, logging

from keras_layer_entropy import report
from keras_layer_entropy.analyzer import analyze_model
from keras_layer_entropy.datasets import SOURCES, DatasetSpec, load_dataset
from keras_layer_entropy.measures.entropy import NORMALIZATIONS, PATTERNS
from keras_layer_entropy.model_files import dataset_record, load_model
from keras_layer_entropy.profile import FLAT_TOLERANCE
from keras_layer_entropy.statistics import MEASURES

_MODEL = flags.DEFINE_string("model", None, ".keras file, Keras directory or .h5 file.")
_DATASET = flags.DEFINE_string("dataset", None, f"The data to measure on:\n{SOURCES}")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where TensorFlow Datasets keeps its data.")
_SPLIT = flags.DEFINE_string("split", None, "Part of the data set, its test part by default.")
_SCALE = flags.DEFINE_float(
    "scale", None, "Inputs are multiplied by this (default: as recorded, or 1/255 for images)."
)
_LAYERS = flags.DEFINE_list("layers", None, "Names or paths of layers (default: every Dense).")
_MEASURES = flags.DEFINE_list(
    "measures",
    "activation_entropy,instability,state_entropy",
    f"Some of {', '.join(MEASURES)}; the first is always measured.",
)
_PATTERN = flags.DEFINE_enum("pattern", PATTERNS[0], PATTERNS, "How a class is averaged.")
_NORMALIZATION = flags.DEFINE_enum(
    "normalization", NORMALIZATIONS[0], NORMALIZATIONS, "What entropies are divided by."
)
_NUM_CLASSES = flags.DEFINE_integer(
    "num_classes", None, "Number of classes (default: the model's outputs); 1 for all together."
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 256, "Samples per batch.", lower_bound=1)
_BASELINE = flags.DEFINE_boolean(
    "baseline", True, "Also measure the same network freshly initialised."
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of that initialisation.")
_TOLERANCE = flags.DEFINE_float(
    "tolerance", FLAT_TOLERANCE, "A layer over which entropy falls by less is flat."
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the files; none are written without.")
_OVERWRITE = flags.DEFINE_boolean("overwrite", False, "Replace files that exist there.")


def main(argv):
    """Runs what the flags say; an error is one message and exit code 2."""
    logging.set_verbosity(logging.WARNING)  # TensorFlow Datasets tells a lot
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        if len(argv) > 1:
            raise ValueError(f"Unknown arguments {argv[1:]}: every option is a --flag, see --help.")
        run()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def run():
    """Measures and writes what the flags say."""
    if _MODEL.value is None:
        raise ValueError("--model=PATH is missing: the model to analyse.")
    if _OUTPUT.value is not None and not _OVERWRITE.value:
        report.check_new(_OUTPUT.value)
    terminal = sys.stdout.isatty()
    console = rich.console.Console(soft_wrap=True)
    model = load_model(_MODEL.value)
    dataset = load_dataset(_dataset_spec(model))
    spec = dataset.spec
    console.print(
        f"Data: {spec.name}, split {spec.split or 'all'}, inputs times {spec.scale:.6g}"
        + (f", as {tuple(spec.shape)}" if spec.shape else "")
    )
    profile = analyze_model(
        model,
        dataset.batches(_BATCH_SIZE.value),
        layers=_LAYERS.value,
        num_classes=_NUM_CLASSES.value,
        measures=tuple(dict.fromkeys(["activation_entropy", *_MEASURES.value])),
        pattern=_PATTERN.value,
        normalization=_NORMALIZATION.value,
        batch_size=_BATCH_SIZE.value,
        baseline=_BASELINE.value,
        seed=_SEED.value,
        verbose=1 if terminal else 0,
    )
    if dataset.classes is not None and len(dataset.classes) == len(profile.classes):
        profile = profile.with_classes(dataset.classes)
    console.print(report.table(profile, _TOLERANCE.value))
    if profile.metrics:
        console.print(", ".join(f"{name} {value:.4g}" for name, value in profile.metrics.items()))
    if _OUTPUT.value is not None:
        for path in report.save_profile(profile, _OUTPUT.value, _OVERWRITE.value):
            console.print(f"wrote {path}", highlight=False)


def _dataset_spec(model):
    recorded = dataset_record(_MODEL.value) or {}
    if _DATASET.value is not None and _DATASET.value != recorded.get("name"):
        recorded = {}
    given = {
        "name": _DATASET.value,
        "data_dir": _DATA_DIR.value,
        "split": _SPLIT.value,
        "scale": _SCALE.value,
        "shape": _input_shape(model),
    }
    values = recorded | {name: value for name, value in given.items() if value is not None}
    if "name" not in values:
        raise ValueError(
            "No data set is named with --dataset and none is recorded beside the model. "
            f"--dataset takes:\n{SOURCES}"
        )
    known = {field.name for field in dataclasses.fields(DatasetSpec)}
    return DatasetSpec(**{name: value for name, value in values.items() if name in known})


def _input_shape(model):
    """The shape of a sample, None where the model does not say."""
    shape = getattr(model, "input_shape", None)
    fixed = isinstance(shape, tuple) and len(shape) > 1 and None not in shape[1:]
    return shape[1:] if fixed else None


if __name__ == "__main__":
    app.run(main)
