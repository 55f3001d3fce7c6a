"""One self-contained HTML page: what was measured, what it says, and what that is worth."""

import base64
import dataclasses
import functools
import importlib.resources

import jinja2
import numpy as np

from keras_layer_entropy import plots
from keras_layer_entropy.files import replacing
from keras_layer_entropy.measures.catalogue import (
    DESCRIPTIONS,
    LAYER_DESCRIPTIONS,
    activation_entropy_meaning,
    layer_value_names,
)
from keras_layer_entropy.measures.entropy import FLAT_TOLERANCE
from keras_layer_entropy.report.files import check_new_file
from keras_layer_entropy.report.tables import comparison_rows, extreme_class
from keras_layer_entropy.report.verdict import listed, summary, verdict

# Numbers of patterns that a page carries; four bytes each, and a third more as text.
_MOST_PATTERNS = 1_000_000


def write_report(
    path, profile, *, history=(), pruning=None, tolerance=FLAT_TOLERANCE, overwrite=False
):
    """Writes a report, one HTML file that needs nothing else.

    Args:
        path: the file.
        profile: `EntropyProfile` with activation_entropy; the patterns of classes are shown where
            it was measured with `keep_patterns=True`. Its settings `data` and `command` (text), if
            there are any, say on what it was measured and how.
        history: `EntropyMonitor.profiles` of the training, to be drawn over epochs.
        pruning: `Pruning`, to be told step by step; `profile` is then that of the original.
        tolerance: below this gradient a layer is flat.
        overwrite: replace the file.

    Returns:
        The path.

    Raises:
        FileExistsError: it exists and `overwrite` is False.
        ValueError: a profile without activation_entropy, or a history of another model.

    Example:

    >>> import pathlib, tempfile
    >>> from keras_layer_entropy import EntropyProfile
    >>> profile = EntropyProfile(
    ...     layers=("dense", "logits"), units=(8, 2), outputs=(False, True), classes=("a", "b"),
    ...     count=[5, 5], normalizer=[2.1, 0.7],
    ...     values={"activation_entropy": [[0.9, 0.8], [0.1, 0.2]]})
    >>> file = write_report(tempfile.mkdtemp() + "/report.html", profile)
    >>> pathlib.Path(file).read_text()[:15]
    '<!doctype html>'
    """
    check_new_file(path, overwrite)
    words, history = summary(profile, tolerance), list(history)
    if any(epoch.layers != profile.layers for epoch in history):
        raise ValueError(
            "history holds profiles of other layers than the profile: expected those of one model, "
            "EntropyMonitor.profiles."
        )
    networks = [_network(profile, "before" if pruning else "network", tolerance, history)]
    if pruning is not None:
        networks.append(_network(pruning.result.after, "after", tolerance))
    values = {
        "model": profile.settings.get("model", "a Keras model"),
        "facts": _facts(profile),
        "verdict": words,
        "networks": networks,
        "patterns": {n["key"]: n["patterns"] for n in networks},
        "epochs": plots.svg(plots.entropy_over_epochs, history) if history else None,
        "pruning": pruning and _pruning(pruning),
        "descriptions": _descriptions(profile, pruning),
        "has_class_patterns": profile.settings.get("pattern") != "per_sample",
        "command": profile.settings.get("command") or (None if pruning else _command(profile)),
    }
    with replacing(path) as temporary:
        temporary.write_text(_template().render(values), encoding="utf-8", errors="replace")
    return path


@functools.cache
def _template():
    text = importlib.resources.files(__package__).joinpath("page.html").read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(text)


def _facts(profile):
    """What was measured: pairs of a name and a text."""
    settings = profile.settings
    date, versions = settings.get("date") or "", settings.get("versions") or {}
    facts = [
        ("data", settings.get("data")),
        ("samples", _sample_words(profile)),
        *((name, f"{value:.4g}") for name, value in profile.metrics.items()),
        ("pattern", settings.get("pattern")),
        ("entropy", profile.unit),
        ("untrained seed", settings.get("baseline_seed")),
        ("measured", date.replace("T", " ").replace("+00:00", " UTC")),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
    ]
    return [(name, text) for name, text in facts if text not in (None, "")]


def _sample_words(profile):
    samples = f"{int(profile.count.sum()):,}"
    if len(profile.classes) == 1:
        return samples
    absent = [name for name, n in zip(profile.classes, profile.count, strict=True) if not n]
    found = f"{samples} of {len(profile.classes) - len(absent)} classes"
    return f"{found}; none of {listed(absent)}" if absent else found


def _descriptions(profile, pruning):
    """Name -> words of each measure that is shown."""
    names = dict.fromkeys([*profile.values, *(pruning.result.after.values if pruning else ())])
    found = {name: DESCRIPTIONS[name] for name in names}
    known = {k: v for k, v in profile.settings.items() if k in ("pattern", "normalization")}
    meaning = activation_entropy_meaning(**known)
    entropy = dataclasses.replace(found["activation_entropy"], meaning=meaning)
    of_layers = {name: LAYER_DESCRIPTIONS[name] for name in profile.layer_values}
    return {**found, "activation_entropy": entropy, **of_layers}


def _command(profile):
    """The Python that measures it again."""
    settings = profile.settings
    arguments = {
        "measures": _measures(profile) if len(profile.values) > 1 else None,
        "pattern": settings.get("pattern"),
        "normalization": settings.get("normalization"),
        "baseline": profile.baseline is not None or None,
        "keep_patterns": bool(profile.patterns) or None,
        "seed": settings.get("baseline_seed"),
    }
    usual = {"pattern": "mean_then_softmax", "normalization": "log", "seed": 0}
    words = [
        f"{name}={value!r}"
        for name, value in arguments.items()
        if value is not None and value != usual.get(name)
    ]
    call = ", ".join(["model", "data", *words])
    return f'profile = analyze_model({call})\nprofile.report("report.html")'


def _measures(profile):
    """The measures as `analyze_model` takes them: names, with options where there are some."""
    options = profile.settings.get("measures") or {}
    names = tuple(profile.values)
    return {name: options.get(name) for name in names} if options else names


def _network(profile, key, tolerance, history=()):
    """What the page shows of one network."""
    others = [name for name in profile.values if name != "activation_entropy"]
    shown = [name for name in others if np.isfinite(profile.values[name]).any()]
    return {
        "key": key,
        "title": {"before": "The network before", "after": "The network after"}.get(key),
        "curve": plots.svg(plots.entropy_curve, profile),
        "heatmap": plots.svg(plots.heatmap, profile),
        "others": [_measure(profile, name, history) for name in shown],
        "columns": [DESCRIPTIONS[name].title for name in shown],
        "has_twin": profile.baseline is not None,
        "layers": _layers(profile, shown, tolerance),
        "patterns": _patterns(profile),
    }


def _measure(profile, name, history):
    """What the page shows of a measure: its figures, and a table of what came with it."""
    title, names = DESCRIPTIONS[name].title, layer_value_names(profile, name)
    figures = [
        (f"{title} of each layer", "curves", plots.svg(plots.entropy_curve, profile, name)),
        (f"{title} of each layer and class", "", plots.svg(plots.heatmap, profile, name)),
    ]
    if names:
        figures.append((f"{title}, layers as a whole", "curves",
                        plots.svg(plots.layer_values, profile, name)))  # fmt: skip
    if {f"{name}_input", f"{name}_labels"} <= set(names):
        epochs = [epoch for epoch in history if set(names) <= set(epoch.layer_values)]
        plane = plots.svg(plots.information_plane, epochs or profile, name)
        figures.append(("Information plane", "curves", plane))
    rows = [
        [_number(profile.layer_values[x][row], LAYER_DESCRIPTIONS[x].unit) for x in names]
        for row in range(len(profile.layers))
    ]
    return {
        "name": name,
        "figures": figures,
        "headers": ["layer", *(LAYER_DESCRIPTIONS[x].title for x in names)],
        "rows": list(zip(profile.layers, rows, strict=True)) if names else [],
    }


def _layers(profile, shown, tolerance):
    """The rows of the table of layers: each number with what stands there when it is pointed at."""
    words = verdict(profile, tolerance)
    rows = []
    for row, layer in enumerate(profile.layers):
        values = profile.entropy[row]
        known = int(np.isfinite(values).sum())
        nats = profile.mean[row] * profile.normalizer[row]
        cells = [_cell(profile.units[row], f"{profile.units[row]:,}", "units")]
        cells += [_number(profile.mean[row], f"{nats:.4f} nats, mean of {known} classes")]
        for choose in (np.nanargmin, np.nanargmax):
            column = extreme_class(profile, row, choose)
            cells.append(
                _number(np.nan, "")
                if column is None
                else _number(
                    values[column],
                    f"class {profile.classes[column]}, {profile.count[column]:,} samples",
                    f" ({_short(profile.classes[column])})" if len(profile.classes) > 1 else "",
                )
            )
        cells += [_number(profile.gradient[row], "the layer before, minus this one", sign="+")]
        cells += [_cell(words[row], words[row], "")]
        if profile.baseline is not None:
            fresh = profile.baseline.mean[row]
            cells += [_number(fresh, f"{profile.mean[row] - fresh:+.4f} by training")]
        for name in shown:
            unit = DESCRIPTIONS[name].unit or profile.unit
            cells += [_number(profile.mean_of(name)[row], unit)]
        rows.append({"layer": layer, "cells": cells})
    return rows


def _short(name, most=20):
    return name if len(name) <= most else f"{name[: most - 3]}..."


def _number(value, words, after="", sign=""):
    if np.isnan(value):
        return _cell("", "-", words)
    return _cell(float(value), f"{value:{sign}.3f}{after}", f"{value:{sign}.6f}, {words}")


def _cell(sort, text, title):
    return {"sort": sort, "text": text, "title": title}


def _patterns(profile):
    """The patterns as the page's script reads them: float32, base64, as many classes as fit in."""
    if not profile.patterns:
        return None
    per_class = sum(pattern.shape[1] for pattern in profile.patterns.values())
    classes = max(1, min(len(profile.classes), _MOST_PATTERNS // per_class))
    return {
        "classes": [str(name) for name in profile.classes[:classes]],
        "counts": profile.count[:classes].tolist(),
        "left_out": len(profile.classes) - classes,
        "layers": [
            {
                "name": layer,
                "units": units,
                "values": base64.b64encode(
                    profile.patterns[layer][:classes].astype("<f4").tobytes()
                ).decode(),
            }
            for layer, units in zip(profile.layers, profile.units, strict=True)
        ],
    }


def _pruning(pruning):
    result = pruning.result
    return {
        "summary": pruning.summary(),
        "comparison": comparison_rows(*pruning.costs, **pruning.accuracies),
        "figure": plots.svg(pruning.figure),
        "steps": result.steps,
        "limit": pruning.limit,
        "reasons": result.reasons,
        "options": dataclasses.asdict(result.options),
        "units": pruning.units,
    }
