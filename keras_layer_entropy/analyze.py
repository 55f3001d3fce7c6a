"""python -m keras_layer_entropy.analyze: measure a saved model on a data set.

    python -m keras_layer_entropy.analyze --model saved_model/ --dataset digits --output analysis

prints a table of its layers and, with --output, leaves profile.json, profile.csv, entropy.png and
heatmap.png there; with --report=report.html, one page that explains them. Without --dataset the
data set recorded beside the model is used.
"""

import sys

from absl import flags

from keras_layer_entropy import command_line, report
from keras_layer_entropy.analysis.analyzer import analyze_model
from keras_layer_entropy.command_line import FLAGS
from keras_layer_entropy.datasets import load_dataset
from keras_layer_entropy.measures.catalogue import DESCRIPTIONS, ENTROPIES
from keras_layer_entropy.measures.entropy import NORMALIZATIONS, PATTERNS

flags.adopt_module_key_flags(command_line)
_MEASURES = flags.DEFINE_list(
    "measures",
    list(ENTROPIES),
    f"Some of {', '.join(DESCRIPTIONS)}; the first is always measured.",
)
_PATTERN = flags.DEFINE_enum("pattern", PATTERNS[0], PATTERNS, "How a class is averaged.")
_NORMALIZATION = flags.DEFINE_enum(
    "normalization", NORMALIZATIONS[0], NORMALIZATIONS, "What entropies are divided by."
)
_NUM_CLASSES = flags.DEFINE_integer(
    "num_classes", None, "Number of classes (default: the model's outputs); 1 for all together."
)
_BASELINE = flags.DEFINE_boolean(
    "baseline", True, "Also measure the same network freshly initialised."
)


def run():
    """Measures and writes what the flags say."""
    model_path = command_line.model_path()
    output, page = command_line.path_of("output"), command_line.path_of("report")
    if output is not None:
        report.check_new(output, FLAGS.overwrite)
    if page is not None:
        report.check_new_file(page, FLAGS.overwrite)
    with command_line.claimed_for_this_run(output, page):
        _analyze(model_path, output, page)


def _analyze(model_path, output, page):
    console = command_line.console()
    model = command_line.opened(model_path)
    dataset = load_dataset(command_line.dataset_spec(model))
    console.print(f"Data: {command_line.described(dataset.spec)}")
    profile = analyze_model(
        model,
        dataset.batches(FLAGS.batch_size),
        layers=FLAGS.layers,
        num_classes=_NUM_CLASSES.value,
        measures=tuple(dict.fromkeys(["activation_entropy", *_MEASURES.value])),
        pattern=_PATTERN.value,
        normalization=_NORMALIZATION.value,
        keep_patterns=page is not None and _PATTERN.value != "per_sample",
        batch_size=FLAGS.batch_size,
        baseline=_BASELINE.value,
        seed=FLAGS.seed,
        verbose=1 if sys.stdout.isatty() else 0,
    )
    if dataset.classes is not None and len(dataset.classes) == len(profile.classes):
        profile = profile.with_classes(dataset.classes)
    profile = command_line.signed(profile, dataset.spec, "analyze")
    console.print(report.table(profile, FLAGS.tolerance))
    for table in report.layer_value_tables(profile):
        console.print(table)
    console.print(report.summary(profile, FLAGS.tolerance), highlight=False)
    if profile.metrics:
        console.print(", ".join(f"{name} {value:.4g}" for name, value in profile.metrics.items()))
    if output is not None:
        for path in report.save_profile(profile, output, FLAGS.overwrite):
            console.print(f"wrote {path}", highlight=False)
    if page is not None:
        profile.report(page, tolerance=FLAGS.tolerance, overwrite=FLAGS.overwrite)
        console.print(f"wrote {page}", highlight=False)


if __name__ == "__main__":
    command_line.main(run)
