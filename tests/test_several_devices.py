"""Two logical devices of one machine, in processes of their own: devices are fixed early."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from keras import layers, losses, models, optimizers

from keras_layer_entropy import load_model, save_model

pytestmark = pytest.mark.tensorflow  # the script names its backend itself

SCRIPT = """
import json, sys, warnings
import numpy as np
if sys.argv[1] == "tensorflow":
    import tensorflow as tf
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras
from keras_layer_entropy import *
from keras_layer_entropy import backend
from keras_layer_entropy.measures import LogDet

dense, samples = keras.layers.Dense, int(sys.argv[2])
x = np.random.default_rng(0).normal(size=(samples, 8)).astype("float32")
y = (x[:, 0] * x[:, 1] > 0).astype(int)

def make():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([
        keras.Input((8,)), dense(16, "relu", name="a"), keras.layers.BatchNormalization(name="n"),
        dense(12, "relu", name="b"), dense(12, "relu", name="c"), dense(2, "softmax", name="out")])
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model

MEASURES = [*("activation_entropy", "state_entropy", "instability", "linear_probe"),
            *("activation_health", "activation_histogram"), LogDet(samples=40)]
DO = {
    "units": lambda m: remove_units(m, {"a": 0.5, "b": 0.25}, x),
    "layer": lambda m: remove_layer(m, "b", calibration_data=x),
    "plan": lambda m: remove_units(m, choose_units(m, x, target={"flops": 0.5}), x),
    "simpler": simplify_model,
    "search": lambda m: prune_model(m, (x, y), (x, y), epochs=0, batch_size=30, max_drop=0.1,
                                    max_removals=2).model,
    "without labels": lambda m: prune_model(m, x, x, remove="units", target={"flops": 0.5},
                                            epochs=0, batch_size=30).model,
}

def found(model):
    options = dict(measures=MEASURES, batch_size=30, verbose=0, baseline=True)
    profile = analyze_model(model, (x, y), **options)
    numbers = {name: result.per_class.tolist() for name, result in profile.results.items()}
    whole = profile["activation_health"].whole
    numbers["health"] = [whole[name].tolist() for name in sorted(whole)]
    numbers["twin"] = profile.baseline.entropy.tolist()
    numbers["count"] = profile.count.tolist()
    numbers["metrics"] = [profile.metrics[name] for name in ("loss", "accuracy")]
    for name in sys.argv[3:] or DO:
        numbers[name] = DO[name](model).predict(x[:60], batch_size=30, verbose=0).tolist()
    return numbers

one = make()
alone = found(one)
with backend.mirrored():
    two = make()
    two.set_weights(one.get_weights())
many = found(two)
# Trained on: replicas normalise by their own samples, so that nothing is equal.
trained = prune_model(two, (x, y), (x, y), epochs=1, batch_size=30, max_removals=1, distill=True)
print(json.dumps([alone, many, len(trained.steps)]))
"""


def run(arguments, backend):
    environment = {
        **os.environ,
        "KERAS_BACKEND": backend,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


# JAX shares out no batch of an odd size; TensorFlow does: 91 is 30, 30, 30 and 1.
# Each model is compiled anew, which takes long on JAX: there two kinds of regression are enough.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "samples", "names"),
    [("tensorflow", 91, []), ("jax", 90, ["layer", "without labels"])],
    ids=["tensorflow", "jax"],
)
def test_two_devices_are_one(backend, samples, names, tmp_path):
    script = tmp_path / "devices.py"
    script.write_text(SCRIPT)
    alone, many, steps = json.loads(
        run([script, backend, samples, *names], backend).splitlines()[-1]
    )
    assert sum(alone["count"]) == samples
    assert steps
    for name, value in alone.items():
        # float32 sums in another order; 1e-6 is what is asked.
        np.testing.assert_allclose(many[name], value, rtol=0, atol=2e-6, err_msg=name)


@pytest.mark.slow
def test_the_flag(tmp_path):
    dense = layers.Dense
    model = models.Sequential(
        [layers.Input((64,)), dense(16, "relu", name="a"), dense(12, "relu"), dense(10)]
    )
    model.compile(optimizers.Adam(), losses.SparseCategoricalCrossentropy(from_logits=True))
    path = save_model(model, tmp_path / "model.keras")
    script = tmp_path / "flag.py"
    script.write_text(
        "import runpy, sys, tensorflow as tf\n"
        "cpu = tf.config.list_physical_devices('CPU')[0]\n"
        "devices = [tf.config.LogicalDeviceConfiguration()] * 2\n"
        "tf.config.set_logical_device_configuration(cpu, devices)\n"
        "runpy.run_module('keras_layer_entropy.prune', run_name='__main__', alter_sys=True)\n"
    )
    flags = ["--dataset=digits", "--remove=units", "--target_flops=0.5", "--epochs=0"]
    outputs = []
    for strategy in ([], ["--strategy=mirrored"]):
        output = pathlib.Path(tmp_path / f"small{len(outputs)}.keras")
        run([script, "--model", path, *flags, *strategy, "--output", output], "tensorflow")
        outputs.append(load_model(output).predict(np.ones((4, 64)), verbose=0))
    np.testing.assert_allclose(outputs[1], outputs[0], rtol=0, atol=1e-5)
