"""python -m keras_layer_entropy compare: two profiles, or two models, side by side.

    python -m keras_layer_entropy compare saved_model/ saved_model_pruned/ --report diff.html
    python -m keras_layer_entropy compare before/profile.json after/profile.json

Profiles are the .json files that `analyze --output` writes, or their folders. Of two models their
costs and layers are compared and, where data are named with --dataset or recorded beside one, what
is measured of both on these. With --report=diff.html one page shows it, what changed most
first.
"""

import dataclasses
import json
import pathlib

from absl import flags

from keras_layer_entropy import command_line, report
from keras_layer_entropy.analysis.analyzer import analyze_model
from keras_layer_entropy.analysis.profile import EntropyProfile
from keras_layer_entropy.command_line import FLAGS
from keras_layer_entropy.comparing import compare
from keras_layer_entropy.datasets import load_dataset
from keras_layer_entropy.files import local_path
from keras_layer_entropy.model_files import dataset_record, model_parts

flags.adopt_module_key_flags(command_line)
_NAMES = flags.DEFINE_list("names", None, "What the two are called, comma-separated.")
TAKES = ("the path of a model or profile", "that of another")


def run(first, second):
    """Compares and writes what the flags say."""
    page = command_line.path_of("report")
    if page is not None:
        report.check_new_file(page, FLAGS.overwrite)
    paths = [local_path(path) for path in (first, second)]
    profiles = [_profile(path) for path in paths]
    names = _names(paths)
    if None not in profiles:
        found = compare(*profiles, names=names)
    elif profiles == [None, None]:
        found = _of_models(paths, names)
    else:
        raise ValueError(
            f"{first} is a {'profile' if profiles[0] else 'model'}, {second} a "
            f"{'profile' if profiles[1] else 'model'}: expected two of a kind."
        )
    command_line.console().print(found.table(), highlight=False)
    if page is not None:
        found.report(page, overwrite=FLAGS.overwrite)
        command_line.console().print(f"wrote {page}", highlight=False)


def _of_models(paths, names):
    """The comparison of two models, and of what is measured of them."""
    models = [command_line.opened(path) for path in paths]
    found = compare(*models, names=names)
    beside = next((i for i, path in enumerate(paths) if dataset_record(path) is not None), 0)
    if FLAGS.dataset is None and dataset_record(paths[beside]) is None:
        note = "No data are named with --dataset or recorded beside a model: nothing was measured."
        return dataclasses.replace(found, notes=[*found.notes, note])
    dataset = load_dataset(command_line.dataset_spec(models[beside], paths[beside]))
    batches = dataset.batches(FLAGS.batch_size)
    measured = compare(
        *(
            analyze_model(
                model, batches, layers=FLAGS.layers, num_classes=FLAGS.num_classes, verbose=0
            )
            for model in models
        ),
        names=names,
    )
    return dataclasses.replace(
        measured,
        sections=[*found.sections, *measured.sections],
        notes=list(dict.fromkeys([*found.notes, *measured.notes])),
    )


def _profile(path):
    """The profile at a path, or in the folder that `analyze` wrote; None where it is a model."""
    if (path / "profile.json").is_file() and not model_parts(path):
        path /= "profile.json"
    if path.suffix != ".json" or not path.is_file():
        return None
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError:
        found = None
    # The architecture of a model; of all else `load` says what is wrong.
    is_model = isinstance(found, dict) and "class_name" in found
    return None if is_model else EntropyProfile.load(path)


def _names(paths):
    """What the two are called: as the flag says, or by as much of their paths as differs."""
    if _NAMES.value is not None:
        return _NAMES.value
    one, other = (pathlib.PurePath(path).parts for path in paths)
    same = 0
    while same < min(len(one), len(other)) - 1 and one[same] == other[same]:
        same += 1
    rests = [str(pathlib.PurePath(*parts[same:])) for parts in (one, other)]
    return None if rests[0] == rests[1] else rests


if __name__ == "__main__":
    command_line.main(run, TAKES)
