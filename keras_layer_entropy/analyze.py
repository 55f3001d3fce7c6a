"""python -m keras_layer_entropy.analyze: measure a saved model on a data set.

    python -m keras_layer_entropy.analyze --model saved_model/ --dataset digits --output analysis

prints a table of its layers and, with --output, leaves profile.json, profile.csv, entropy.png and
heatmap.png there; with --report=report.html, one page that explains them. Without --dataset the
data set recorded beside the model is used.
"""

import shlex
import sys

from absl import flags

from keras_layer_entropy import command_line, report
from keras_layer_entropy.analysis.analyzer import analyze_model
from keras_layer_entropy.command_line import FLAGS
from keras_layer_entropy.datasets import load_dataset
from keras_layer_entropy.measures.entropy import ActivationEntropy
from keras_layer_entropy.measures.registry import MEASURES, get_measures, parse_measure

flags.adopt_module_key_flags(command_line)
_MEASURES = flags.DEFINE_list(
    "measures",
    ["activation_entropy", "instability", "state_entropy"],
    f"Some of {', '.join(MEASURES)}; the first is always measured. With options: "
    "logdet:beta=1.0:samples=500, activation_entropy:pattern=per_sample:normalization=none.",
)
_BEAM_OPTIONS = flags.DEFINE_string(
    "beam_options",
    None,
    "Measure a TFDS data set in pieces, by Apache Beam with these options of its own: "
    '"--runner=DirectRunner --direct_running_mode=multi_processing --direct_num_workers=4", or '
    "those of a cluster.",
)
_BASELINE = flags.DEFINE_boolean(
    "baseline", True, "Also measure the same network freshly initialised."
)


def run():
    """Measures and writes what the flags say."""
    model_path, measures = command_line.model_path(), _measures()
    output, page = command_line.path_of("output"), command_line.path_of("report")
    if output is not None:
        report.check_new(output, FLAGS.overwrite)
    if page is not None:
        report.check_new_file(page, FLAGS.overwrite)
    with command_line.claimed_for_this_run(output, page):
        _analyze(model_path, measures, output, page)


def _analyze(model_path, measures, output, page):
    console = command_line.console()
    model = command_line.opened(model_path)
    dataset = load_dataset(command_line.dataset_spec(model, command_line.model_path()))
    console.print(f"Data: {command_line.described(dataset.spec)}")
    request = dict(
        layers=FLAGS.layers,
        num_classes=FLAGS.num_classes,
        measures=measures,
        batch_size=FLAGS.batch_size,
        baseline=_BASELINE.value,
        seed=FLAGS.seed,
    )
    if _BEAM_OPTIONS.value is None:
        verbose = 1 if sys.stdout.isatty() else 0
        profile = analyze_model(
            model, dataset.batches(FLAGS.batch_size), verbose=verbose, **request
        )
    else:
        profile = _by_beam(model_path, dataset.spec, request)
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


def _by_beam(model_path, spec, request):
    try:
        from keras_layer_entropy import beam
    except ImportError as error:
        raise ValueError(
            f"--beam_options needs Apache Beam ({error}): pip install 'keras_layer_entropy[beam]'."
        ) from error
    return beam.analyze(
        model_path, spec, shlex.split(_BEAM_OPTIONS.value), custom_objects=FLAGS.custom_objects,
        allow_unsafe=FLAGS.allow_unsafe, **request,
    )  # fmt: skip


def _measures():
    """The measures that `--measures` names, with the entropy, and for a report its patterns."""
    found = get_measures([parse_measure(text) for text in _MEASURES.value])
    entropy = next((x for x in found if x.name == ActivationEntropy.key), ActivationEntropy())
    if FLAGS.report is not None and entropy.options["pattern"] != "per_sample":
        entropy = ActivationEntropy(**{**entropy.options, "keep_patterns": True})
    return [entropy, *(x for x in found if x.name != entropy.name)]


if __name__ == "__main__":
    command_line.main(run)
