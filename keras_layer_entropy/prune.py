"""python -m keras_layer_entropy.prune: a smaller model that is as good.

    python -m keras_layer_entropy.prune --model saved_model/

takes out blocks, Dense layers and units, in each step what changes the outputs least for what it
saves, refits the layers behind in closed form, retrains, keeps what holds its quality on the
validation data (accuracy of a classifier, else the loss; --quality), and leaves saved_model_pruned/
beside the input, which is never written to: the model in the same format, pruning.json (every
step), before.json and after.json (entropy profiles) and pruning.png; with --report=report.html, one
page that shows all of this. Test data are touched once, at the end.

--remove=layers takes out these alone (or blocks, or units alone); --target_flops=0.5 goes on until
half of the operations are left. --criterion chooses layers or units by a rule of its own:
entropy_gradient is the paper's, and takes out only layers over which entropy is flat or rises.
--dry_run says what could go, what that saves and what it is predicted to cost, and why the rest
stays.
"""

import dataclasses
import json
import os
import pathlib
import sys
import warnings

import keras
import rich.progress
from absl import flags

from keras_layer_entropy import command_line, report
from keras_layer_entropy.analysis.analyzer import analyze_model, analyze_units
from keras_layer_entropy.command_line import FLAGS
from keras_layer_entropy.datasets import load_parts
from keras_layer_entropy.files import recover
from keras_layer_entropy.measures.entropy import ActivationEntropy
from keras_layer_entropy.measures.measure import listed
from keras_layer_entropy.model_files import FILE_SUFFIXES, model_format, weights_of
from keras_layer_entropy.pruning import CRITERIA, PruningOptions, rank_units
from keras_layer_entropy.pruning.checkpoint import Checkpoint, data_fingerprint, fingerprint
from keras_layer_entropy.pruning.cost import (
    KEYS,
    batch_sizes,
    cost_of,
    counted,
    shares,
)
from keras_layer_entropy.pruning.options import MODES
from keras_layer_entropy.pruning.outcome import Output, compared
from keras_layer_entropy.pruning.qualities import choose_quality
from keras_layer_entropy.pruning.search import look_ahead, run_search
from keras_layer_entropy.pruning.simplify import simplify_model
from keras_layer_entropy.pruning.timing import least_left
from keras_layer_entropy.pruning.unit_criteria import GREEDY, UNIT_CRITERIA
from keras_layer_entropy.recording.layers import choose
from keras_layer_entropy.recording.passes import Source

TARGET_MISSED = 3  # exit code
_ADAM, _ACCURACY = "adam", "accuracy"
_SHOWN = (ActivationEntropy(keep_patterns=True), "instability", "state_entropy")

flags.adopt_module_key_flags(command_line)
_DEFAULTS = PruningOptions()
_REMOVE = flags.DEFINE_list(
    "remove",
    None,
    "What may go: blocks (residual branches, composite layers, convolutions), layers (whole Dense "
    "layers), units (neurons, kernels, channels of any layers), or several (default: all, or what "
    "the criterion is for).",
)
_CRITERION = flags.DEFINE_string(
    "criterion",
    None,
    f"Which goes first: of layers {', '.join(CRITERIA)} (default: output_change); of units "
    f"{', '.join((GREEDY, *UNIT_CRITERIA))} (default: {GREEDY}); of blocks output_change.",
)
_QUALITY = flags.DEFINE_string(
    "quality",
    None,
    "What has to stay, on the validation data: accuracy, loss, fidelity (to the original), or the "
    "name of a compiled metric (default: accuracy of a classifier, else loss).",
)
_MODE = flags.DEFINE_enum(
    "mode", _DEFAULTS.mode, MODES, "Whether more of a metric is better (max) or less (min)."
)
_MAX_DROP = flags.DEFINE_float(
    "max_drop",
    None,
    "How much worse it may become than the original's; of accuracy 0.01 is one point (default: "
    "0.01 for accuracy and agreement with the original, 0.05 for the relative error to it; with a "
    "target no limit).",
)
_MAX_RELATIVE_DROP = flags.DEFINE_float(
    "max_relative_drop",
    None,
    "The same as a share of the original's (default: 0.05 for loss and metrics; with a target no "
    "limit).",
)
_DISTILL = flags.DEFINE_boolean(
    "distill", _DEFAULTS.distill, "Train for what the original gives, and not for the labels."
)
_TARGETS = {
    key: flags.DEFINE_float(
        f"target_{key}", None, f"Share of the original's {key} that may remain: go on until then."
    )
    for key in KEYS
}
_TARGET_LATENCY = flags.DEFINE_list(
    "target_latency",
    None,
    "The same of the time that a batch of 256 takes; of other batches, 0.7@1 for single samples.",
)
_STEP_SHARE = flags.DEFINE_float(
    "step_share", _DEFAULTS.step_share, "Share of the cost that is left that goes with one batch."
)
_STAND_IN = flags.DEFINE_string(
    "stand_in",
    str(_DEFAULTS.stand_in),
    "What stands in for a block: auto, none, or the kernel size of a convolution, an odd number.",
)
_MULTIPLE_OF = flags.DEFINE_integer(
    "multiple_of", _DEFAULTS.multiple_of, "Leave a multiple of so many units in each layer."
)
_CALIBRATION_SAMPLES = flags.DEFINE_integer(
    "calibration_samples",
    _DEFAULTS.calibration_samples,
    "Training samples that units are chosen, and layers behind them refitted on.",
)
_EPOCHS = flags.DEFINE_integer(
    "epochs", _DEFAULTS.epochs, "Epochs of training after each removal; 0 for none."
)
_LEARNING_RATE = flags.DEFINE_float(
    "learning_rate", None, "Learning rate of that training (default: the optimizer's own)."
)
_MAX_REMOVALS = flags.DEFINE_integer(
    "max_removals", None, "Most layers, or batches of units, to take out."
)
_LOSS = flags.DEFINE_string(
    "loss",
    None,
    "Loss of a model that is not compiled, as compile takes it: sparse_categorical_crossentropy, "
    "say.",
)
_OPTIMIZER = flags.DEFINE_string(
    "optimizer", None, f"Optimizer of a model that is not compiled (default: {_ADAM})."
)
_METRICS = flags.DEFINE_list(
    "metrics", None, f"Metrics of a model that is not compiled (default: {_ACCURACY})."
)
_KEEP = flags.DEFINE_list("keep", [], "Names or paths of layers that must stay as they are.")
_SIMPLIFY = flags.DEFINE_boolean(
    "simplify",
    _DEFAULTS.simplify,
    "At the end, take out what changes no output: foldable normalisations, dropout, dead units.",
)
_REFIT = flags.DEFINE_boolean("refit", True, "Refit the layers behind in closed form.")
_DRY_RUN = flags.DEFINE_boolean("dry_run", False, "Only say what would be tried and why.")
_RESUME = flags.DEFINE_boolean("resume", False, "Go on with a run that was interrupted.")


def run():
    """Prunes and writes what the flags say."""
    options, model_path = _options(), command_line.model_path()
    if _DRY_RUN.value:
        page = _new_page()
        with command_line.claimed_for_this_run(page):
            _dry_run(options, model_path, page)
        return
    output, page = _output(), _new_page()
    with command_line.claimed_for_this_run(output.path, page):
        _prune(options, model_path, output)


def _new_page():
    """Where the report goes, None for none; errors where it would take the place of something."""
    page = command_line.path_of("report")
    if page is not None:
        _check_report(page, _output())
        report.check_new_file(page, FLAGS.overwrite)
    return page


def _dry_run(options, model_path, page):
    console, model = command_line.console(), _compiled(command_line.opened(model_path))
    parts, quality = _parts(console, model, options)
    found, profile = look_ahead(
        model, *_searched(parts, options), options, quality, baseline=page is not None
    )
    _print_plan(console, found)
    target = options.target or {}
    if batch_sizes(target):
        console.print("What latency is left is measured as the search goes, after each step.")
    target = counted(target)
    sample = Source(parts.validation.batches(1)).first()[0]
    left = shares(*found.costs) if len(found.costs) > 1 else least_left(found, model, sample)
    missed = any(left[key] > share for key, share in target.items())
    if missed:
        console.print("The target would not be met: this is all that can go.")
    if options.simplify:
        left = shares(*(cost_of(each, sample) for each in (model, simplify_model(model))))
        console.print(
            f"Simplified as it is, {left['parameters']:.1%} of the parameters and "
            f"{left['flops']:.1%} of the FLOPs would be left."
        )
    if page is None:
        console.print("Dry run: nothing was written.")
    else:
        signed = command_line.signed(_named(profile, parts), parts.validation.spec, "prune")
        report.write_report(
            page, signed, plan=found, tolerance=FLAGS.tolerance, overwrite=FLAGS.overwrite
        )
        console.print(f"Dry run: nothing was written but {page}", highlight=False, markup=False)
    if missed:
        sys.exit(TARGET_MISSED)


def _compiled(model):
    """The model, compiled with what the flags say if it is not compiled."""
    given = [f"--{flag.name}" for flag in (_LOSS, _OPTIMIZER, _METRICS) if flag.value is not None]
    if model.compiled:
        if given:
            raise ValueError(
                f"{listed(given)}: for a model that is not compiled, but {model.name!r} is: leave "
                "that out."
            )
        return model
    if _LOSS.value is None:
        raise ValueError(
            f"{model.name!r} is not compiled: pass --loss, the loss that it was trained with "
            "(--loss=sparse_categorical_crossentropy, say; --optimizer and --metrics are "
            f"{_ADAM} and {_ACCURACY} where they are not given)."
        )
    metrics = [_ACCURACY] if _METRICS.value is None else _METRICS.value
    optimizer = _known("optimizer", _OPTIMIZER.value or _ADAM, keras.optimizers.get)
    _known("loss", _LOSS.value, keras.losses.get)
    for name in set(metrics) - {"acc", "ce"}:  # which compile alone knows
        _known("metrics", name, keras.metrics.get)
    model.compile(optimizer, _LOSS.value, metrics=metrics)
    return model


def _known(flag, name, get):
    """What Keras knows by a name."""
    try:
        return get(name)
    except (ValueError, TypeError):
        raise ValueError(
            f"--{flag}: {name!r} is nothing that Keras knows; expected a name that compile takes."
        ) from None


def _searched(parts, options):
    """Training and validation data, the first as a function of a step's seed."""
    return (
        lambda seed: parts.train.training_batches(options.batch_size, seed),
        parts.validation.batches(options.batch_size),
    )


def _prune(options, model_path, output):
    console, model = command_line.console(), _compiled(command_line.opened(model_path))
    parts, quality = _parts(console, model, options)
    settings = _settings(options, parts)
    checkpoint = Checkpoint(output.unfinished, settings)
    resume = _resumed(console, checkpoint, output)
    steps = [] if resume is None else list(resume[1])
    with _Progress(console, options, quality, len(steps)) as progress:

        def on_step(current, step):
            steps.append(step)
            checkpoint.save(current, steps)
            progress.finish_step(step)

        result = run_search(
            model, *_searched(parts, options), options, quality, on_step=on_step, resume=resume,
            callbacks=[progress],
        )  # fmt: skip
    for path, reason in result.reasons.items():
        console.print(f"{path} stays: {reason}", highlight=False)
    _finish(console, model, result, parts, output, settings)
    checkpoint.remove()
    if result.target_met is False:
        sys.exit(TARGET_MISSED)


def _options():
    return PruningOptions(
        criterion=_CRITERION.value,
        tolerance=FLAGS.tolerance,
        quality=_QUALITY.value,
        mode=_MODE.value,
        max_drop=_MAX_DROP.value,
        max_relative_drop=_MAX_RELATIVE_DROP.value,
        distill=_DISTILL.value,
        epochs=_EPOCHS.value,
        learning_rate=_LEARNING_RATE.value,
        batch_size=FLAGS.batch_size,
        max_removals=_MAX_REMOVALS.value,
        layers=FLAGS.layers,
        keep=tuple(_KEEP.value),
        refit=_REFIT.value,
        seed=FLAGS.seed,
        num_classes=FLAGS.num_classes,
        remove=_REMOVE.value,
        target=_target() or None,
        step_share=_STEP_SHARE.value,
        stand_in=_stand_in(_STAND_IN.value),
        multiple_of=_MULTIPLE_OF.value,
        simplify=_SIMPLIFY.value,
        calibration_samples=_CALIBRATION_SAMPLES.value,
    )


def _target():
    """What the flags say may remain."""
    found = {key: flag.value for key, flag in _TARGETS.items() if flag.value is not None}
    for given in _TARGET_LATENCY.value or ():
        share, at, size = given.partition("@")
        try:
            found[f"latency{at}{size}"] = float(share)
        except ValueError:
            raise ValueError(
                f"--target_latency={given}; expected the share that may remain, 0.7, with a batch "
                "size if it is not 256, 0.7@1."
            ) from None
    return found


def _stand_in(given):
    """What --stand_in says, as options take it."""
    if given == "none":
        return None
    return int(given) if given.isdecimal() else given


def _parts(console, model, options):
    """The data, and the `Quality` that decides; both are said."""
    # What is recorded beside the model is the part that it was measured on.
    spec = dataclasses.replace(
        command_line.dataset_spec(model, command_line.model_path()), split=FLAGS.split
    )
    parts = load_parts(spec, options.seed)
    _check_labels(model, parts)
    quality = choose_quality(model, parts.validation.batches(options.batch_size), options)
    console.print(quality.said(), highlight=False)
    for name in ("train", "validation", "test"):
        described = command_line.described(getattr(parts, name).spec)
        console.print(f"{name}: {described}", highlight=False)
    for note in parts.notes:
        console.print(f"note: {note}", highlight=False)
    return parts, quality


def _check_labels(model, parts):
    """Raises where a model with several outputs has not labels for each."""
    names = list(getattr(model, "output_names", None) or ())
    if len(names) < 2:
        return
    _, y, _ = Source(parts.validation.batches(1)).first()
    if not isinstance(y, dict) or set(y) - set(names):
        found = f"labels for {listed(list(y))}" if isinstance(y, dict) else "one label a sample"
        wanted = listed([f"y.{name}" for name in names])
        raise ValueError(
            f"{model.name!r} has the outputs {listed(names)}, and the data {found}: name the "
            f"labels of each in an .npz file, {wanted} (y_test.{names[0]}, ... of a part)."
        )


def _settings(options, parts):
    """What makes one run the same as another, as JSON gives it back."""
    found = (parts.train, parts.validation, parts.test)
    whole = {
        "model": fingerprint(command_line.model_path()),
        "weights": fingerprint(weights) if (weights := _weights()) else None,
        "loss": _LOSS.value,
        "optimizer": _OPTIMIZER.value,
        "metrics": _METRICS.value,
        "data": [dataclasses.asdict(part.spec) for part in found],
        "contents": [data_fingerprint(part.batches(options.batch_size)) for part in found],
        **dataclasses.asdict(options),
    }
    return json.loads(json.dumps(whole))


def _weights():
    """The file with the weights of a model in two files; None of others."""
    path = command_line.model_path()
    pair = model_format(path) == "json"
    return weights_of(path, command_line.path_of("weights")) if pair else None


def _output():
    """Where the model goes; errors where that cannot be, before anything is computed."""
    suffixes = FILE_SUFFIXES[model_format(command_line.model_path())]
    return Output(_output_path(suffixes), is_file=bool(suffixes))


def _output_path(suffixes):
    model = pathlib.Path(os.path.realpath(command_line.model_path()))
    if FLAGS.output is None:
        if not suffixes:
            return model.with_name(f"{model.name}_pruned")
        return model.with_name(f"{model.stem}_pruned{suffixes[0]}")
    output = pathlib.Path(os.path.realpath(command_line.path_of("output")))
    if suffixes and output.suffix not in suffixes:
        raise ValueError(
            f"--output={FLAGS.output}: the model is written to one file, as the input is one, so "
            f"that the name has to end in {' or '.join(suffixes)}."
        )
    if not suffixes and any(output.suffix in others for others in FILE_SUFFIXES.values()):
        raise ValueError(
            f"--output={FLAGS.output}: the input is a directory, and so is the output: leave out "
            f"{output.suffix}."
        )
    if output in (model, _weights()) or model in output.parents or output in model.parents:
        raise ValueError(f"--output={FLAGS.output} would write over the input model.")
    return output


def _check_report(page, output):
    """Raises where the report would take the place of something else."""
    page, model = (pathlib.Path(os.path.realpath(p)) for p in (page, command_line.model_path()))
    unfinished, weights = output.unfinished, _weights()
    own = () if weights is None else (pathlib.Path(os.path.realpath(weights)),)
    for path in (model, *own, output.path, unfinished, *output.records.values()):
        if page == path or (path in (model, unfinished) and path in page.parents):
            raise ValueError(f"--report={FLAGS.report} would write over {path}: name another file.")


def _resumed(console, checkpoint, output):
    """`(model, steps)` to go on from, or None to begin; errors where something is in the way."""
    output.check_replaceable()
    for path in (*recover(output.path), *recover(checkpoint.folder)):
        console.print(f"note: removed {path}, which a run that was killed left half-written")
    if _RESUME.value:
        model, steps = checkpoint.load(command_line.opened)
        if not FLAGS.overwrite:
            _check_free(output, "with --resume, ")
        console.print(f"Resuming after step {len(steps)}.")
        return model, steps
    if FLAGS.overwrite:
        checkpoint.remove()
        return None
    if checkpoint.exists():
        raise FileExistsError(
            f"An unfinished run is in {checkpoint.folder}: pass --resume to go on with it, or "
            "--overwrite to begin anew."
        )
    _check_free(output)
    return None


def _check_free(output, besides=""):
    for path in output.taken():
        other = "" if besides else "choose another --output, or "
        raise FileExistsError(f"{path} exists: {other}pass --overwrite {besides}to replace it.")


def _print_plan(console, found):
    for line in report.plan_lines(found) or ["Nothing would be taken out."]:
        console.print(line, highlight=False, markup=False)
    if len(found.costs) > 1:
        left = shares(*found.costs)
        console.print(
            f"{left['flops']:.1%} of the FLOPs and {left['parameters']:.1%} of the parameters "
            "would be left.",
            highlight=False,
        )
    for path, reason in found.reasons.items():
        console.print(f"{path} stays: {reason}", highlight=False, markup=False)
    if found.parts:
        console.print(report.PLAN_NOTE, highlight=False, markup=False)


def _finish(console, model, result, parts, output, settings):
    """Measures both models, writes everything, prints the table."""
    validation, test = (x.batches(FLAGS.batch_size) for x in (parts.validation, parts.test))
    before, after = (
        command_line.signed(_named(profile, parts), parts.validation.spec, "prune")
        for profile in (result.before, result.after)
    )
    result = dataclasses.replace(result, before=before, after=after)
    search = compared(model, result, validation, test, FLAGS.batch_size)
    output.write(search, settings, parts.test.spec)
    console.print(f"\n{search.summary()}\nWrote {output.path}", highlight=False)
    if result.options.simplify:
        kept = [step for step in result.steps if step.accepted]
        found, last = search.costs[1], kept[-1] if kept else search.costs[0]
        console.print(
            f"Simplified at the end: {last.parameters:,} to {found.parameters:,} parameters, "
            f"{last.flops:,} to {found.flops:,} FLOPs.",
            highlight=False,
        )
    console.print(report.comparison(*search.costs, result.quality, **search.qualities))
    if FLAGS.report is not None:
        _write_report(search, model, validation)
        console.print(f"wrote {command_line.path_of('report')}", highlight=False)


def _write_report(search, model, validation):
    """The page; both models are measured once more, for it shows more of them."""
    result = search.result
    profiles = {}
    for name, network in (("before", model), ("after", result.model)):
        known = getattr(result, name)
        profile = analyze_model(
            network, validation, measures=_SHOWN, batch_size=FLAGS.batch_size,
            layers=list(known.layers) if search.of_units else FLAGS.layers, baseline=True,
            num_classes=1 if len(known.classes) == 1 else FLAGS.num_classes, seed=FLAGS.seed,
            verbose=0,
        )  # fmt: skip
        profile = profile.with_classes(known.classes)
        settings = {**profile.settings, **known.settings}
        profiles[name] = dataclasses.replace(profile, settings=settings)
    result = dataclasses.replace(result, **profiles)
    # Where units went already, which of the rest are weak by another measure is beside the point.
    units = () if search.of_units else _ranked_units(result.model, validation)
    search = dataclasses.replace(search, result=result, units=units)
    report.write_report(
        command_line.path_of("report"),
        profiles["before"],
        pruning=search,
        tolerance=FLAGS.tolerance,
        overwrite=FLAGS.overwrite,
    )


def _ranked_units(model, data):
    """Names and words on the units of the model's convolutions; none where these have no maps."""
    chosen, out_of_reach = choose(model, keras.layers.Conv2D)
    if not (chosen or out_of_reach):
        return ()
    try:
        profiles = analyze_units(
            model, data, layers=keras.layers.Conv2D, batch_size=FLAGS.batch_size, verbose=0
        )
    except ValueError as error:  # the search itself is done and written: the page is to be, too
        warnings.warn(f"Units of convolutions are left out of the report: {error}", stacklevel=2)
        return ()
    ranked = [rank_units("feature_entropy", profile) for profile in profiles]
    return tuple((part.name, found) for units in ranked for part, found in units.items())


def _named(profile, parts):
    """The profile with the names that the data have for its classes."""
    names = parts.validation.classes
    return profile.with_classes(names) if len(names or ()) == len(profile.classes) else profile


class _Progress(keras.callbacks.Callback):
    """Says which step and epoch is running and how long it may take; a line for each step."""

    def __init__(self, console, options, quality, done):
        super().__init__()
        self._epochs, self._quality = options.epochs, quality
        self._step = done + 1
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task("analysing", total=None)

    def __enter__(self):
        self._bar.start()
        return self

    def __exit__(self, *error):
        self._bar.stop()

    def on_train_begin(self, logs=None):
        steps = self.params.get("steps") or 0
        self._bar.reset(self._task, total=self._epochs * steps or None)

    def on_epoch_begin(self, epoch, logs=None):
        words = f"step {self._step}: training, epoch {epoch + 1} of {self._epochs}"
        self._bar.update(self._task, description=words)

    def on_train_batch_end(self, batch, logs=None):
        self._bar.advance(self._task)

    def on_train_end(self, logs=None):
        self._bar.update(self._task, description=f"step {self._step}: checking", total=None)

    def finish_step(self, step):
        """Prints what came of a step."""
        verdict = "removed" if step.accepted else "rolled back"
        text = self._quality.text
        retrained = f", retrained {text(step.quality_retrained)}" if self._epochs else ""
        error = step.standard_error
        known = "" if error is None else f" (± {text(error)} of what was lost)"
        self._bar.console.print(
            f"step {self._step}: {verdict} {step.part}: {step.reason}; validation "
            f"{self._quality.words} {text(step.quality_before)}, right after "
            f"{text(step.quality_removed)}{retrained}{known} ({step.seconds:.1f} s)",
            highlight=False,
        )
        self._step += 1
        self._bar.update(self._task, description=f"step {self._step}: choosing", total=None)


if __name__ == "__main__":
    command_line.main(run)
