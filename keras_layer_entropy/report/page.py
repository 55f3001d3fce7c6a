"""One self-contained HTML page: what was measured, what it says, and what that is worth."""

import base64
import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import jinja2
import numpy as np

from keras_layer_entropy import plots
from keras_layer_entropy.files import AnyPath, replacing
from keras_layer_entropy.measures.entropy import FLAT_TOLERANCE
from keras_layer_entropy.measures.measure import Profile, listed
from keras_layer_entropy.measures.registry import MEASURES
from keras_layer_entropy.report.files import check_new_file
from keras_layer_entropy.report.plan import PLAN_NOTE, percent, plan_figure, plan_rows, plan_summary
from keras_layer_entropy.report.pruning import Pruning
from keras_layer_entropy.report.tables import comparison_rows, extreme_class
from keras_layer_entropy.report.verdict import summary

# Numbers of patterns that a page carries; four bytes each, and a third more as text.
_MOST_PATTERNS = 1_000_000


def write_report(
    path: AnyPath,
    profile: Profile,
    *,
    history: Iterable[Profile] = (),
    pruning: Pruning | None = None,
    plan: Any = None,
    tolerance: float = FLAT_TOLERANCE,
    overwrite: bool = False,
) -> AnyPath:
    """Writes a report, one HTML file that needs nothing else.

    Args:
        path: the file.
        profile: `EntropyProfile` with activation_entropy; the patterns of classes are shown where
            the entropy was measured with `keep_patterns=True`. Its settings `data` and `command`
            (text), if there are any, say on what it was measured and how.
        history: `EntropyMonitor.profiles` of the training, to be drawn over epochs.
        pruning: `Pruning`, to be told step by step; `profile` is then that of the original.
        plan: `pruning.Plan` of the model, as `pruning.plan` gives it, to be shown part by part.
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
    ...     layers=("dense", "logits"), widths=(8, 2), is_output=(False, True),
    ...     classes=("a", "b"), count=[5, 5],
    ...     results={"activation_entropy": [[0.9, 0.8], [0.1, 0.2]]})
    >>> file = write_report(tempfile.mkdtemp() + "/report.html", profile)
    >>> pathlib.Path(file).read_text()[:15]
    '<!doctype html>'
    """
    check_new_file(path, overwrite)
    profile["activation_entropy"]  # or an error, before anything is drawn
    history = list(history)
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
        "verdict": summary(profile, tolerance),
        "networks": networks,
        "patterns": {n["key"]: n["patterns"] for n in networks},
        "epochs": plots.svg(plots.entropy_over_epochs, history) if history else None,
        "pruning": pruning and _pruning(pruning),
        "plan": None if plan is None else _plan(plan),
        "descriptions": _descriptions(profile, pruning),
        "has_class_patterns": _has_class_patterns(profile),
        "command": profile.settings.get("command") or (None if pruning else _command(profile)),
    }
    with replacing(path) as temporary:
        temporary.write_text(
            _template("page.html").render(values), encoding="utf-8", errors="replace"
        )
    return path


def write_comparison(path: AnyPath, comparison: Any, overwrite: bool = False) -> AnyPath:
    """Writes a comparison, one HTML file that needs nothing else: what changed most comes first.

    Args:
        path: the file.
        comparison: `side_by_side.Comparison`.
        overwrite: replace the file.

    Returns:
        The path.

    Raises:
        FileExistsError: it exists and `overwrite` is False.
    """
    check_new_file(path, overwrite)
    sections = [
        {"title": x.title, "columns": x.columns, "rows": _most_changed_first(x)}
        for x in comparison.sections
    ]
    values = {
        "names": comparison.names,
        "notes": comparison.notes,
        "figure": plots.svg(comparison.figure),
        "sections": sections,
    }
    with replacing(path) as temporary:
        page = _template("comparison.html").render(values)
        temporary.write_text(page, encoding="utf-8", errors="replace")
    return path


def _most_changed_first(section: Any) -> list[Sequence[str]]:
    """The rows of a section, by their column "change" where there is one."""
    if "change" not in section.columns:
        return list(section.rows)
    place = list(section.columns).index("change")

    def size(row: Sequence[str]) -> float:
        try:
            return abs(float(row[place].rstrip("%")))
        except ValueError:  # a layer that is gone or new, or a dash
            return -1.0 if row[place] == "-" else math.inf

    return sorted(section.rows, key=size, reverse=True)


@functools.cache
def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        loader=jinja2.PackageLoader("keras_layer_entropy", "report"),
    )  # fmt: skip
    return environment.get_template(name)


def _facts(profile: Profile) -> list[tuple[str, Any]]:
    """What was measured: pairs of a name and a text."""
    settings = profile.settings
    date, versions = settings.get("date") or "", settings.get("versions") or {}
    facts = [
        ("data", settings.get("data")),
        ("samples", _sample_words(profile)),
        *((name, f"{value:.4g}") for name, value in profile.metrics.items()),
        *(
            (f"{option} of {name}", value)
            for name, measure in profile.measures.items()
            for option, value in measure.chosen.items()
            if not isinstance(value, bool)
        ),
        ("entropy", profile.entropy_unit),
        ("untrained seed", settings.get("baseline_seed")),
        ("measured", date.replace("T", " ").replace("+00:00", " UTC")),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
    ]
    return [(name, text) for name, text in facts if text not in (None, "")]


def _sample_words(profile: Profile) -> str:
    samples = f"{int(profile.count.sum()):,}"
    if len(profile.classes) == 1:
        return samples
    absent = [name for name, n in zip(profile.classes, profile.count, strict=True) if not n]
    found = f"{samples} of {len(profile.classes) - len(absent)} classes"
    return f"{found}; none of {listed(absent)}" if absent else found


def _descriptions(profile: Profile, pruning: Pruning | None) -> dict[str, dict[str, str]]:
    """Name -> words of each measure that is shown."""
    after = pruning.result.after if pruning else profile
    found = {}
    for name, measure in {**profile.measures, **after.measures}.items():
        found[name] = {field: getattr(measure, field) for field in ("title", "meaning", "caveat")}
    for name, measure in profile.measures.items():
        for key in profile[name].whole:
            found[f"{name}_{key}"] = dataclasses.asdict(measure.words(key))
    return found


def _command(profile: Profile) -> str | None:
    """The Python that measures it again; None where a measure of it is not known."""
    seed = profile.settings.get("baseline_seed")
    if any(x.key not in MEASURES for x in profile.measures.values()):
        return None
    own = [x for x in profile.measures.values() if x.chosen or x.name != x.key]
    measures = [repr(x) if x in own else repr(x.key) for x in profile.measures.values()]
    arguments = {
        "measures": f"[{', '.join(measures)}]",
        "baseline": profile.baseline is not None or None,
        "seed": seed or None,
    }
    if measures == ["'activation_entropy'"]:
        del arguments["measures"]
    words = [f"{name}={value}" for name, value in arguments.items() if value is not None]
    call = f"profile = analyze_model({', '.join(['model', 'data', *words])})"
    homes: dict[str, dict[str, None]] = {}
    for each in map(type, own):
        ours = each.__module__.startswith("keras_layer_entropy.")
        home = "keras_layer_entropy.measures" if ours else each.__module__
        homes.setdefault(home, {})[each.__name__] = None
    imports = [f"from {home} import {', '.join(names)}\n" for home, names in homes.items()]
    return f'{"".join(imports)}{call}\nprofile.report("report.html")'


def _network(
    profile: Profile, key: str, tolerance: float, history: Sequence[Profile] = ()
) -> dict[str, Any]:
    """What the page shows of one network."""
    others = [name for name in profile.results if name != "activation_entropy"]
    shown = [name for name in others if np.isfinite(profile[name].per_class).any()]
    return {
        "key": key,
        "title": {"before": "The network before", "after": "The network after"}.get(key),
        "curve": plots.svg(plots.entropy_curve, profile),
        "heatmap": plots.svg(plots.heatmap, profile),
        "others": [_measure(profile, name, history) for name in shown],
        "columns": [profile.measures[name].title for name in shown],
        "has_twin": profile.baseline is not None,
        "layers": _layers(profile, shown, tolerance),
        "patterns": _patterns(profile),
    }


def _measure(profile: Profile, name: str, history: Sequence[Profile]) -> dict[str, Any]:
    """What the page shows of a measure: its figures, and a table of what came with it."""
    measure, result = profile.measures[name], profile[name]
    figures = [
        (
            f"{measure.title}: {panel.kind}",
            "" if panel.kind == "heatmap" else "curves",
            plots.svg(plots.panel, profile, name, panel, history),
        )
        for panel in measure.panels
    ]
    columns = []
    for key, values in result.whole.items():
        words = measure.words(key)
        columns.append((words.title, words.unit, values))
        if key in result.shuffled:
            columns.append((f"{words.title}, shuffled", words.unit, result.shuffled[key]))
    rows = [
        [_number(values[row], unit) for _, unit, values in columns]
        for row in range(len(profile.layers))
    ]
    return {
        "name": name,
        "figures": figures,
        "headers": ["layer", *(title for title, _, _ in columns)],
        "rows": list(zip(profile.layers, rows, strict=True)) if result.whole else [],
    }


def _layers(profile: Profile, shown: Sequence[str], tolerance: float) -> list[dict[str, Any]]:
    """The rows of the table of layers: each number with what stands there when it is pointed at."""
    words = profile.trend(tolerance)
    rows = []
    for row, layer in enumerate(profile.layers):
        values = profile.entropy[row]
        known = int(np.isfinite(values).sum())
        nats = np.mean(profile.entropy_nats[row][np.isfinite(values)]) if known else np.nan
        cells = [_cell(profile.widths[row], f"{profile.widths[row]:,}", "units")]
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
            cells += [_number(profile[name].mean[row], profile[name].unit)]
        rows.append({"layer": layer, "cells": cells})
    return rows


def _short(name: str, most: int = 20) -> str:
    return name if len(name) <= most else f"{name[: most - 3]}..."


def _number(value: float, words: str, after: str = "", sign: str = "") -> dict[str, Any]:
    if np.isnan(value):
        return _cell("", "-", words)
    return _cell(float(value), f"{value:{sign}.3f}{after}", f"{value:{sign}.6f}, {words}")


def _cell(sort: Any, text: str, title: str) -> dict[str, Any]:
    return {"sort": sort, "text": text, "title": title}


def _has_class_patterns(profile: Profile) -> bool:
    """Whether the entropy is that of a pattern of each class."""
    return profile.measures["activation_entropy"].options["pattern"] != "per_sample"


def _patterns(profile: Profile) -> dict[str, Any] | None:
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
            for layer, units in zip(profile.layers, profile.widths, strict=True)
        ],
    }


def _pruning(pruning: Pruning) -> dict[str, Any]:
    result, options, units = pruning.result, pruning.result.options, pruning.of_units
    before, after = pruning.costs
    qualities = [f"{pruning.words} before", "right after", "retrained"]
    return {
        "summary": pruning.summary(),
        "comparison": comparison_rows(before, after, result.quality, **pruning.qualities),
        "figure": plots.svg(pruning.figure),
        "figure_label": (
            f"{'Units of each layer' if units else 'Entropy against depth'} before and after, and "
            f"validation {pruning.words} as {pruning.kinds} went"
        ),
        "thinned": pruning.thinned,
        "steps": result.steps,
        "part": "what went",
        "why": "why",
        "qualities": qualities if options.epochs else qualities[:2],
        "text": result.quality.text,
        "note": _pruning_note(pruning),
        "stayed": "Why the rest stayed",
        "reasons": result.reasons,
        "units": pruning.units,
    }


def _plan(plan: Any) -> dict[str, Any]:
    rows = []
    for row in plan_rows(plan):
        cells = [_cell(row.parameters, f"{row.parameters:,d}", "parameters")]
        for name, share in (*row.saved.items(), ("change of the outputs", row.change)):
            cells.append(_cell("" if share is None else share, percent(share), name))
        rows.append((row, cells))
    return {
        "summary": plan_summary(plan),
        "figure": plots.svg(plan_figure, plan) if plan_figure(plan) else None,
        "rows": rows,
        "note": PLAN_NOTE,
        "reasons": plan.reasons,
    }


def _pruning_note(pruning: Pruning) -> str:
    """How the search went about it, in words."""
    options, quality = pruning.result.options, pruning.result.quality
    after = ", after retraining," if options.epochs else ""
    accepted = (
        f"A removal was accepted where validation {quality.words}{after} was at "
        f"{'least' if quality.higher else 'most'} {quality.text(pruning.limit)}, also one standard "
        "error worse."
        if math.isfinite(pruning.limit)
        else f"Every removal was accepted: {quality.words} had no limit."
    )
    refitted = "refitted in closed form" if options.refit else "not refitted"
    trained = (
        f"each removal was followed by at most {options.epochs} epochs of training"
        if options.epochs
        else "there was no training"
    )
    if any(step.standard_error is None for step in pruning.result.steps):
        known = f"No standard error is known, as {quality.words} is no mean over samples here."
    else:
        known = "± is the standard error of what was lost of the original's, sample by sample."
    return (
        f"{accepted} What took what went was {refitted}; {trained}. {known} The search looked at "
        f"the validation data {pruning.looks} times, and the more often, the more its choices suit "
        "just these. The test data were used once, at the end."
    )
