"""What the command lines have in common: flags for model and data, and how errors are told."""

import contextlib
import dataclasses
import logging as python_logging
import shlex
import sys
import warnings

import keras
import rich.console
from absl import app, flags, logging

from keras_layer_entropy import backend
from keras_layer_entropy.datasets import SOURCES, DatasetSpec
from keras_layer_entropy.files import claimed, local_path
from keras_layer_entropy.measures.entropy import FLAT_TOLERANCE
from keras_layer_entropy.model_files import dataset_record, load_model, objects_of

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "model",
    None,
    ".keras file, Keras directory, .h5 file, SavedModel directory of Keras 2, or the .json file of "
    "an architecture of Keras 2.",
)
flags.DEFINE_string(
    "weights",
    None,
    "The .h5 file with the weights of a .json file (default: the one that lies beside it).",
)
flags.DEFINE_list(
    "custom_objects", [], "Modules with layers, losses, ... of your own that the model is made of."
)
flags.DEFINE_boolean(
    "allow_unsafe",
    False,
    "Open the model whatever classes and functions it names, Lambda layers too: whoever wrote the "
    "file can then run any code on this machine, as you.",
)
flags.DEFINE_string("dataset", None, f"The data:\n{SOURCES}")
flags.DEFINE_string("data_dir", None, "Where TensorFlow Datasets keeps its data.")
flags.DEFINE_string(
    "split",
    None,
    "To analyse: the part to measure on (default: test). To prune: one part, which is split, or "
    "three, comma-separated: train,validation,test (default: those of the data set).",
)
flags.DEFINE_float(
    "scale", None, "Inputs are multiplied by this (default: as recorded, or 1/255 for images)."
)
flags.DEFINE_list("layers", None, "Names or paths of layers (default: every Dense).")
flags.DEFINE_integer(
    "num_classes", None, "Number of classes (default: the model's outputs); 1 for all together."
)
flags.DEFINE_integer("batch_size", 256, "Samples per batch.", lower_bound=1)
flags.DEFINE_integer("seed", 0, "Seed of everything random.")
flags.DEFINE_float("tolerance", FLAT_TOLERANCE, "A layer over which entropy falls by less is flat.")
flags.DEFINE_enum(
    "strategy",
    None,
    ["mirrored"],
    "mirrored: on all GPUs of this machine at once, each with a part of every batch.",
)
flags.DEFINE_string("output", None, "Where to write.")
flags.DEFINE_string("report", None, "Also write a report, one HTML page, to this file.")
flags.DEFINE_boolean("overwrite", False, "Replace what exists there.")


def main(run, takes=()):
    """Runs a command line: an error is one message on stderr and exit code 2.

    Args:
        run: what it does.
        takes: names of what stands on it without a flag, which `run` is given.
    """

    def guarded(argv):
        logging.set_verbosity(logging.WARNING)  # TensorFlow Datasets tells a lot
        # Each smaller model is a new one: TensorFlow takes that for tracing one again and again.
        python_logging.getLogger("tensorflow").setLevel(python_logging.ERROR)
        warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
        try:
            if len(argv) - 1 != len(takes):
                expected = f"{' and '.join(takes)}, and flags" if takes else "flags alone"
                raise ValueError(f"Unknown arguments {argv[1:]}: expected {expected}, see --help.")
            run(*argv[1:])
        except (ValueError, OSError) as error:
            _fail(error)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)
        except Exception as error:
            # What TensorFlow says of data that do not fit a model.
            if not type(error).__module__.startswith("tensorflow"):
                raise
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            _fail(f"TensorFlow: {next((x for x in lines if 'eceived' in x), lines[-1])[:300]}")

    app.run(guarded, flags_parser=_parsed)


def _parsed(argv):
    """What is left of a command line without its flags."""
    try:
        return FLAGS(argv)
    except flags.Error as error:
        _fail(f"{error} (see --help)")


def _fail(error):
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


def console():
    """The terminal; lines are as long as they are."""
    return rich.console.Console(soft_wrap=True)


def path_of(flag):
    """The path that a flag names, None where it is not given."""
    value = FLAGS[flag].value
    try:
        return None if value is None else local_path(value)
    except ValueError as error:
        raise ValueError(f"--{flag}: {error}") from error


def model_path():
    """`--model`."""
    if FLAGS.model is None:
        raise ValueError("--model=PATH is missing.")
    return path_of("model")


@contextlib.contextmanager
def claimed_for_this_run(*paths):
    """While the block runs, these places (None for none) can be written to, by nobody else."""
    with contextlib.ExitStack() as stack:
        for path in paths:
            if path is not None:
                stack.enter_context(claimed(path))
        yield


def opened(path):
    """The model at `path`, made of Keras's objects and those of `--custom_objects`."""
    keras.saving.get_custom_objects().update(objects_of(FLAGS.custom_objects))
    weights = path_of("weights") if path == path_of("model") else None
    with contextlib.nullcontext() if FLAGS.strategy is None else backend.mirrored():
        return load_model(path, allow_unsafe=FLAGS.allow_unsafe, weights=weights)


def dataset_spec(model, path):
    """The data set that the flags name, else the one recorded beside the model at a path."""
    recorded = dataset_record(path) or {}
    if FLAGS.dataset is not None and FLAGS.dataset != recorded.get("name"):
        recorded = {}
    given = {
        "name": FLAGS.dataset,
        "data_dir": FLAGS.data_dir,
        "split": FLAGS.split,
        "scale": FLAGS.scale,
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


def described(spec):
    """A data set in words."""
    return f"{spec.name}, split {spec.split or 'all'}, inputs times {spec.scale:.6g}" + (
        f", as {tuple(spec.shape)}" if spec.shape else ""
    )


def signed(profile, spec, module):
    """The profile with the data and the command that it comes from among its settings."""
    command = shlex.join(["python", "-m", f"keras_layer_entropy.{module}", *sys.argv[1:]])
    own = {"data": described(spec), "command": command}
    return dataclasses.replace(profile, settings={**profile.settings, **own})


def _input_shape(model):
    """The shape of a sample, None where the model does not say."""
    shape = getattr(model, "input_shape", None)
    fixed = isinstance(shape, tuple) and len(shape) > 1 and None not in shape[1:]
    return shape[1:] if fixed else None
