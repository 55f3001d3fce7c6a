"""What measuring costs, small: one table of ratios beside the bounds that they are to keep.

    make bench

Each is the median (minimum to maximum) of pairs of commands timed in turn, on whatever machine this
is: a bound that is missed here may be kept elsewhere, and the other way round. The whole tables are
made by `overhead.py`, `measures.py` and `topology.py` (docs/performance.md).
"""

import functools

import measures
import numpy as np
import overhead
from absl import app, flags

from keras_layer_entropy import EntropyMonitor

_SMALL_PAIRS = flags.DEFINE_integer("few", 5, "Pairs per comparison.", lower_bound=3)
AT_MOST, AT_LEAST = "at most", "at least"


def analysis(make, pairs):
    """CPU time of a warm analysis over `evaluate`."""
    model, x, y = overhead.prepared(make)
    analyzer = overhead.EntropyAnalyzer(model)
    run = functools.partial(analyzer.analyze, (x, y), batch_size=overhead.BATCH, verbose=0)
    plain = functools.partial(model.evaluate, x, y, batch_size=overhead.BATCH, verbose=0)
    return np.transpose(overhead.ratios_of(run, plain, pairs, warm=6))[0]


def of_classes(number, pairs):
    """CPU time of a batch of an analysis of many classes, over that of `evaluate`."""
    return np.transpose(overhead.of_classes(number, pairs)[1])[0]


def in_fit(monitor, pairs):
    """CPU time of steady epochs of `fit` with a monitor over those without."""
    return overhead.beside(overhead.mlp, monitor, pairs, samples=5120)[0][0]


def of_measure(make, measure, pairs):
    """Time of a pass for a measure over a plain forward pass."""
    model, x, y = measures.prepared(make)
    plain, measured = measures.over_forward(model, x, y, measure, pairs).T
    return measured / plain


def births(size, pairs):
    """How many times as fast as GUDHI's Rips complex the births of loops are found."""
    import topology  # needs gudhi and ripser

    ((_, times),) = topology.speed({size: topology.SIZES[size]}, pairs)
    return [times["GUDHI, Rips"] / times["called"]]


ALERTS, HISTOGRAMS = (functools.partial(EntropyMonitor, **x) for x in overhead.WATCHED)
# What, AT_MOST or AT_LEAST, the bound, and what measures it.
ROWS = [
    *(
        (f"analysis / evaluate, {name}", AT_MOST, 1.1, functools.partial(analysis, make))
        for name, make in overhead.MODELS.items()
    ),
    *(
        (f"a batch of an analysis / evaluate, {n} classes", AT_MOST, 1.1,
         functools.partial(of_classes, n))
        for n in (10, 1000)
    ),
    ("fit with EntropyMonitor() / without", AT_MOST, 1.05,
     functools.partial(in_fit, EntropyMonitor)),
    ("fit with EntropyMonitor(alerts=True) / without", AT_MOST, 1.1,
     functools.partial(in_fit, ALERTS)),
    ("fit with entropies and histograms / without", AT_MOST, 1.05,
     functools.partial(in_fit, HISTOGRAMS)),
    *(
        (f"{measure} / forward pass, {name}", AT_MOST, bound,
         functools.partial(of_measure, make, measure))
        for name, make, bounds in (
            ("MLP", measures.mlp, {"activation_health": 1.5, "instability": 3.4, "logdet": 3.0,
                                   "mutual_information": 3.0}),
            ("CNN", measures.cnn, {"logdet": 12.0, "mutual_information": 12.0,
                                   "feature_entropy": 5.0}),
        )
        for measure, bound in bounds.items()
    ),
    *(
        (f"births of loops, {n} x {n}: times as fast as GUDHI", AT_LEAST, bound,
         functools.partial(births, n))
        for n, bound in ((14, 20), (28, 50), (56, 50))
    ),
]  # fmt: skip


def main(argv):
    """Prints the table."""
    del argv
    print("\n| what | ratio: median (min to max) | bound | kept? |\n|---|---|---|---|", flush=True)
    for what, side, bound, run in ROWS:
        found = run(_SMALL_PAIRS.value)
        middle = np.median(found)
        kept = middle <= bound if side == AT_MOST else middle >= bound
        words = overhead.spread(found) if len(found) > 1 else f"{middle:.1f}"
        print(f"| {what} | {words} | {side} {bound:g} | {'yes' if kept else 'no'} |", flush=True)


if __name__ == "__main__":
    app.run(main)
