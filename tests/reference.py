"""The measures in float64 NumPy, written from their formulas, one class at a time."""

import numpy as np


def softmax(a):
    e = np.exp(a - a.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def entropy(p):
    return -np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0), axis=-1)


def activation_entropy(a, pattern="mean_then_softmax", normalize=True, weight=None):
    a = np.asarray(a, np.float64)
    if a.shape[-1] == 1:
        a = np.concatenate([np.zeros_like(a), a], axis=-1)
    average = lambda v: np.average(v, axis=0, weights=weight)  # noqa: E731
    nats = {
        "mean_then_softmax": lambda: entropy(softmax(average(a))),
        "softmax_then_mean": lambda: entropy(average(softmax(a))),
        "per_sample": lambda: average(entropy(softmax(a))),
    }[pattern]()
    return nats / np.log(a.shape[-1]) if normalize else nats


def instability(a):
    return activation_entropy(a, "softmax_then_mean") - activation_entropy(a, "per_sample")


def state_entropy(pre):
    q = np.mean(np.asarray(pre) > 0, axis=0)
    terms = [np.where(v > 0, -v * np.log2(np.where(v > 0, v, 1)), 0) for v in (q, 1 - q)]
    return np.mean(sum(terms))


def by_class(measure, activations, y, classes, **kwargs):
    """`[classes]`, each from the rows of its class; positions count as rows."""
    values = []
    for c in range(classes):
        rows = np.asarray(activations, np.float64)[y == c]
        values.append(measure(rows.reshape(-1, rows.shape[-1]), **kwargs))
    return np.array(values)
