"""A profile as people read it: a table on the terminal, files in a folder."""

import pathlib

import numpy as np
import rich.box
import rich.table

from keras_layer_entropy import plots
from keras_layer_entropy.files import replacing
from keras_layer_entropy.profile import FLAT_TOLERANCE

FILES = ("profile.json", "profile.csv", "entropy.png", "heatmap.png")


def table(profile, tolerance=FLAT_TOLERANCE):
    """The layers of a profile, a `rich.table.Table`.

    Args:
        profile: `EntropyProfile` with activation_entropy.
        tolerance: below this gradient a layer is flat.

    Returns:
        `rich.table.Table`: layer, units, mean, lowest and highest class, gradient, verdict; and a
        column for each other measure and for the untrained twin.

    Example:

    >>> from keras_layer_entropy import EntropyProfile
    >>> profile = EntropyProfile(
    ...     layers=("dense", "logits"), units=(8, 2), outputs=(False, True), classes=("a", "b"),
    ...     count=[5, 5], normalizer=[2.1, 0.7],
    ...     values={"activation_entropy": [[0.9, 0.8], [0.1, 0.2]]})
    >>> [column.header for column in table(profile).columns][:4]
    ['layer', 'units', 'mean', 'min\\n(class)']
    """
    others = [name for name in profile.values if name != "activation_entropy"]
    result = rich.table.Table(
        title=f"Activation entropy ({profile.unit}) of {int(profile.count.sum())} samples",
        title_justify="left",
        box=rich.box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=0,
    )
    result.add_column("layer", overflow="fold", min_width=8)
    for name in ("units", "mean", "min\n(class)", "max\n(class)", "gradient"):
        result.add_column(name, justify="right", no_wrap=True)
    result.add_column("flat?", no_wrap=True)
    if profile.baseline is not None:
        result.add_column("un-\ntrained", justify="right", no_wrap=True)
    for name in others:
        header = {"instability": "insta-\nbility"}.get(name, name.replace("_", "\n"))
        result.add_column(header, justify="right", no_wrap=True)
    verdicts = verdict(profile, tolerance)
    for row, layer in enumerate(profile.layers):
        cells = [layer, str(profile.units[row]), _number(profile.mean[row])]
        cells += [_extreme(profile, row, np.nanargmin), _extreme(profile, row, np.nanargmax)]
        cells += [_number(profile.gradient[row], sign=True), verdicts[row]]
        if profile.baseline is not None:
            cells.append(_number(profile.baseline.mean[row]))
        cells += [_number(profile.mean_of(name)[row]) for name in others]
        result.add_row(*cells)
    return result


def comparison(before, after, validation, test):
    """What a smaller model saves and what it costs in accuracy, a `rich.table.Table`.

    Args:
        before, after: `pruning.Cost`s.
        validation, test: pairs of accuracies, before and after.
    """
    result = rich.table.Table(box=rich.box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    result.add_column("")
    for name in ("before", "after", "after / before"):
        result.add_column(name, justify="right")
    rows = [
        ("Dense layers", before.dense_layers, after.dense_layers, "{:d}"),
        ("parameters", before.parameters, after.parameters, "{:,d}"),
    ]
    if before.flops and after.flops:
        rows.append(("FLOPs per sample", before.flops, after.flops, "{:,d}"))
    for size, latency in before.latency.items():
        name = f"latency, batch of {size} (ms)"
        rows.append((name, latency, after.latency[size], "{:.2f}"))
    for name, first, second, form in rows:
        result.add_row(name, form.format(first), form.format(second), f"{second / first:.2f}")
    for name, (first, second) in (("validation", validation), ("test", test)):
        difference = f"{second - first:+.4f}"
        result.add_row(f"{name} accuracy", f"{first:.4f}", f"{second:.4f}", difference)
    return result


def verdict(profile, tolerance=FLAT_TOLERANCE):
    """One word per layer: `flat`, `rises`, `falls`, or `output`, or nothing for the first."""
    words = []
    for gradient, output in zip(profile.gradient, profile.outputs, strict=True):
        if output:
            words.append("output")
        elif np.isnan(gradient):
            words.append("")
        else:
            words.append("rises" if gradient < 0 else "flat" if gradient < tolerance else "falls")
    return words


def save_profile(profile, directory, overwrite=False):
    """Writes `profile.json`, `profile.csv`, `entropy.png` and `heatmap.png` into a folder.

    Args:
        profile: `EntropyProfile` with activation_entropy.
        directory: made where it does not exist.
        overwrite: replace files of these names.

    Returns:
        List of the paths.

    Raises:
        FileExistsError: one of the files exists and `overwrite` is False; nothing is written.
    """
    if not overwrite:
        check_new(directory)
    paths = [pathlib.Path(directory, name) for name in FILES]
    profile.save(paths[0])
    profile.to_csv(paths[1])
    for path, draw in zip(paths[2:], (plots.entropy_curve, plots.heatmap), strict=True):
        with replacing(path) as temporary:
            draw(profile).savefig(temporary, dpi=150)
    return paths


def check_new(directory):
    """Raises FileExistsError where `save_profile` would overwrite a file."""
    if pathlib.Path(directory).is_file():
        raise FileExistsError(f"{directory} is a file; expected a folder to write to.")
    existing = [name for name in FILES if pathlib.Path(directory, name).exists()]
    if existing:
        raise FileExistsError(
            f"{', '.join(existing)} in {directory} would be overwritten: choose another folder, or "
            "pass --overwrite (overwrite=True)."
        )


def _extreme(profile, row, choose):
    values = profile.entropy[row]
    if np.isnan(values).all():
        return "-"
    column = choose(values)
    name = "" if len(profile.classes) == 1 else f" ({profile.classes[column]})"
    return _number(values[column]) + name


def _number(value, sign=False):
    return "-" if np.isnan(value) else f"{value:+.3f}" if sign else f"{value:.3f}"
