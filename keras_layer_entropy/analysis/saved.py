"""Profiles as JSON: the format that is written, and those that are read."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from keras_layer_entropy.measures.measure import Measure, MeasureResult
from keras_layer_entropy.measures.registry import MEASURES

FORMAT_VERSION = 2
_RESULT = ("unit", "per_class", "whole", "shuffled", "normalizer", "details")


class _Unknown(Measure):
    """A measure that this process does not know, of a profile that was saved."""

    def __init__(self, key, unit, name, options):
        super().__init__(name, **options)
        self.key, self.unit, self.title = key, unit, name.replace("_", " ")
        self.meaning = "A measure that is not known here."


def to_json(profile):
    """What is written of an `EntropyProfile`, baseline included, as plain JSON values."""
    data = {field.name: getattr(profile, field.name) for field in dataclasses.fields(profile)}
    del data["results"]
    data["baseline"] = profile.baseline and to_json(profile.baseline)
    data["measures"] = {
        name: {
            "measure": measure.key,
            "options": {k: _named(v) for k, v in measure.options.items()},
            **{field: getattr(profile[name], field) for field in _RESULT},
            # Six digits are enough for a picture, and a third of the file.
            "details": _rounded(profile[name].details),
        }
        for name, measure in profile.measures.items()
    }
    return plain({"format_version": FORMAT_VERSION, **data})


def from_json(cls, data):
    """The profile, of class `cls`, that was written."""
    data = dict(data)
    if data.pop("format_version", FORMAT_VERSION) == 1:
        data = _of_version_1(data)
    measures, results = {}, {}
    for name, saved in data["measures"].items():
        result = MeasureResult(**{field: _arrays(saved[field]) for field in _RESULT})
        results[name] = result
        key, options = saved["measure"], saved["options"]
        measures[name] = (
            MEASURES[key].from_saved(name, options, result, data["widths"])
            if key in MEASURES
            else _Unknown(key, result.unit, name, options)
        )
    metrics = {k: np.nan if v is None else v for k, v in data["metrics"].items()}
    baseline = data["baseline"] and from_json(cls, data["baseline"])
    return cls(
        **{**data, "results": results, "measures": measures, "metrics": metrics,
           "baseline": baseline}
    )  # fmt: skip


def plain(value):
    """Arrays to lists, tuples to lists, NaN and infinities to None."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _named(option):
    """An option, of a function its name."""
    return getattr(option, "__name__", type(option).__name__) if callable(option) else option


def _rounded(value):
    if isinstance(value, Mapping):
        return {key: _rounded(v) for key, v in value.items()}
    if isinstance(value, np.ndarray):
        value = value.tolist()
    return [_rounded(v) for v in value] if isinstance(value, list) else float(f"{value:.6g}")


def _arrays(value):
    """Lists to arrays, None in them to NaN."""
    if isinstance(value, Mapping):
        return {key: _arrays(v) for key, v in value.items()}
    return np.array(value, np.float64) if isinstance(value, list) else value


def _of_version_1(data):
    """A profile of 0.1 as it would be written now."""
    settings, values = data["settings"], data.pop("values")
    layer_values, patterns = data.pop("layer_values", {}), data.pop("patterns", {})
    data["widths"], data["is_output"] = data.pop("units"), data.pop("outputs")
    normalizer, baseline = data.pop("normalizer"), data["baseline"]
    usual = {
        "activation_entropy": {
            k: settings[k] for k in ("pattern", "normalization") if k in settings
        },
        "instability": {k: settings[k] for k in ("normalization",) if k in settings},
    }
    data["measures"] = {}
    for name, per_class in values.items():
        whole, shuffled = {}, {}
        for key, value in layer_values.items():
            if key.startswith(f"{name}_"):
                key = key.removeprefix(f"{name}_")
                found = shuffled if key.endswith("_shuffled") else whole
                found[key.removesuffix("_shuffled")] = value
        entropy = name in usual
        if name == "activation_entropy":
            normalizer = _of_measured(normalizer, values)
        details = {layer: {"pattern": pattern} for layer, pattern in patterns.items()}
        if patterns and name == "activation_entropy":
            usual[name]["keep_patterns"] = True
        options = {**usual.get(name, {}), **settings.get("measures", {}).get(name, {})}
        measure = MEASURES[name]
        if entropy and options.get("normalization", "log") not in ("log", "none"):
            unit = "normalised"
        else:
            unit = measure(**options).unit
        data["measures"][name] = {
            "measure": name,
            "options": {**measure().options, **options},
            "unit": unit,
            "per_class": per_class,
            "whole": whole,
            "shuffled": shuffled,
            "normalizer": normalizer if entropy else None,
            "details": details if name == "activation_entropy" else {},
        }
    data["baseline"] = baseline and {**baseline, "format_version": 1}
    return data


def _of_measured(normalizer, values):
    """NaN for layers that 0.1 had come along for a measure of another kind."""
    kinds = ("activation_entropy", "instability", "state_entropy")

    def known(row, own):
        tables = [table for name, table in values.items() if (name in kinds) == own]
        return any(value is not None for table in tables for value in table[row])

    return [
        value if known(row, True) or not known(row, False) else None
        for row, value in enumerate(normalizer)
    ]
