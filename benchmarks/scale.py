"""What large analyses come to, from pieces that are measured here.

    python benchmarks/scale.py

Drift: the sum of 100,000,000 samples in batches of 256, as a pass adds them up (`CompensatedSum`),
against the exact one and against plain float32. State: bytes that a worker holds and that one part
sends, as `Measure.state_size` and `PartialAnalysis` have them; whether a pass would begin (the
limit is 4 GiB). Joining: seconds for two parts of one layer. A pass over ImageNet: samples a second
of an analysis of MobileNetV2 at 224 x 224 on this machine, and what that makes on some workers
alike, each with a share of the samples, and joined in a tree.
"""

import math
import time

import keras
import numpy as np
import tensorflow as tf
from absl import app

from keras_layer_entropy import EntropyAnalyzer
from keras_layer_entropy.analysis.measurement import MOST_STATE
from keras_layer_entropy.measures import states
from keras_layer_entropy.measures.class_sums import CompensatedSum
from keras_layer_entropy.measures.measure import LayerInfo
from keras_layer_entropy.measures.registry import get_measures

SAMPLES, BATCH, IMAGENET = 10**8, 256, 1_281_167
NAMES = ("activation_entropy", "state_entropy", "instability")


def drift():
    """Relative errors of a sum of many batches, compensated and plain."""
    sums, plain = CompensatedSum((1, 1)), tf.Variable([[0.0]])
    batch = np.float32(0.1) * np.float32(BATCH)
    steps = SAMPLES // BATCH

    @tf.function(jit_compile=True)
    def run():
        for _ in tf.range(steps):
            sums.add(tf.constant([[batch]]))
            plain.assign_add([[batch]])

    run()
    exact = float(batch) * steps
    return [abs(found / exact - 1) for found in (sums.total().item(), plain.numpy().item())]


def state(classes, layers, units):
    """`(bytes that a worker holds, bytes of a part)` of the usual measures."""
    shape = (None, units)
    info = LayerInfo("layer", units, {"output": shape, "pattern": shape, "pre_activation": shape})
    held = sum(measure.state_size(info, classes) for measure in get_measures(NAMES)) * layers
    sent = layers * len(NAMES) * 8 * classes * (1 + units)
    return held, sent


def joining(classes, units):
    """Seconds to join two parts of one layer."""
    part = {"0/sum/total": np.ones((classes, 1 + units))}
    start = time.perf_counter()
    for _ in range(5):
        states.joined([part, part])
    return (time.perf_counter() - start) / 5


def rate():
    """Samples a second of an analysis of MobileNetV2, and bytes of a part."""
    model = keras.applications.MobileNetV2(weights=None)
    x = np.random.default_rng(0).normal(size=(4 * 64, 224, 224, 3)).astype("float32")
    y = np.arange(len(x)) % 1000
    layers = [keras.layers.Conv2D, keras.layers.Dense]
    analyzer = EntropyAnalyzer(model, layers=layers, num_classes=1000)
    part = analyzer.analyze_part((x, y), batch_size=64, verbose=0)  # compiles
    start = time.perf_counter()
    analyzer.analyze_part((x, y), batch_size=64, verbose=0)
    seconds = time.perf_counter() - start
    return len(x) / seconds, sum(array.nbytes for array in part.arrays.values())


def size(count):
    """Bytes in words."""
    return f"{count / 2**20:,.0f} MiB" if count < 2**30 else f"{count / 2**30:,.1f} GiB"


def main(argv):
    """Prints the tables."""
    del argv
    compensated, plain = drift()
    print(f"Sum of {SAMPLES:,} samples: off by {compensated:.0e}; plain float32 by {plain:.0e}")
    print(f"\n| {', '.join(NAMES)} | held | begins | a part | joining two |\n{'|---' * 5}|")
    for classes, layers, units in ((1000, 100, 512), (1000, 100, 4096), (10, 10, 10**5)):
        held, sent = state(classes, layers, units)
        seconds = layers * len(NAMES) * joining(classes, units)
        begins = "yes" if held <= MOST_STATE else "no"
        what = f"{classes:,} classes, {layers} layers of {units:,}"
        print(f"| {what} | {size(held)} | {begins} | {size(sent)} | {seconds:.1f} s |", flush=True)
    per_second, part = rate()
    print(f"\nMobileNetV2, 224 x 224: {per_second:.0f} samples a second, a part {size(part)}")
    print("\n| workers | pass over ImageNet | moved by a worker | joined in |\n|---|---|---|---|")
    once = joining(1000, part // 8000)
    for workers in (1, 16, 128):
        hours = IMAGENET / workers / per_second / 3600
        levels = math.ceil(math.log2(workers))
        print(f"| {workers} | {hours:.1f} h | {size(part)} | {levels * once:.1f} s |", flush=True)


if __name__ == "__main__":
    app.run(main)
