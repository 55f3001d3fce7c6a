"""Train a deep MLP on real handwritten digits, watch its layers live, then analyse them.

python examples/digits.py --workdir=runs/digits
"""

import keras
import rich
from absl import app, flags
from ml_collections import config_flags

from keras_layer_entropy import EntropyMonitor, analyze_model, report, save_model
from keras_layer_entropy.datasets import DatasetSpec, load_dataset

_CONFIG = config_flags.DEFINE_config_file("config", "configs/digits.py")
_WORKDIR = flags.DEFINE_string("workdir", "runs/digits", "Folder for the results.")
_OVERWRITE = flags.DEFINE_boolean("overwrite", False, "Replace earlier results there.")


def build(config):
    """`hidden_layers` Dense layers of `units`, and a softmax over the ten digits."""
    hidden = [
        keras.layers.Dense(config.units, "relu", kernel_initializer="he_normal")
        for _ in range(config.hidden_layers)
    ]
    model = keras.Sequential(
        [keras.Input((64,)), *hidden, keras.layers.Dense(10, "softmax", name="output")]
    )
    model.compile(
        keras.optimizers.Adam(config.learning_rate),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model


def run(config, workdir, overwrite=False):
    """Trains, analyses, and leaves saved_model/, profile.* and figures in `workdir`.

    Returns `(model, profile)`.
    """
    keras.utils.set_random_seed(config.seed)
    train, validation, test = (
        load_dataset(DatasetSpec("digits", split=split, shape=(64,)))
        for split in ("train", "validation", "test")
    )
    model = build(config)
    model.fit(
        *train.arrays,
        validation_data=validation.arrays,
        batch_size=config.batch_size,
        epochs=config.epochs,
        verbose=2,
        callbacks=[EntropyMonitor()],
    )
    profile = analyze_model(
        model,
        test.arrays,
        measures=("activation_entropy", "instability", "state_entropy"),
        baseline=True,
        seed=config.seed,
        verbose=0,
    )
    save_model(model, f"{workdir}/saved_model", dataset=test.spec, overwrite=overwrite)
    paths = report.save_profile(profile, workdir, overwrite)
    rich.print(report.table(profile))
    rich.print(f"Test accuracy {profile.metrics['accuracy']:.3f}. Now look at {paths[2]}.")
    return model, profile


def main(argv):
    """Runs what the flags say."""
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments {argv[1:]}.")
    run(_CONFIG.value, _WORKDIR.value, _OVERWRITE.value)


if __name__ == "__main__":
    app.run(main)
