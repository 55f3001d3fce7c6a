"""Train a deep MLP on real handwritten digits, watch its layers live, then analyse them.

python examples/digits.py --workdir=runs/digits
"""

import keras
import rich
import studies

from keras_layer_entropy import EntropyMonitor, analyze_model, report, save_model
from keras_layer_entropy.datasets import DatasetSpec, load_dataset
from keras_layer_entropy.measures import ActivationEntropy


def build(config):
    """`hidden_layers` Dense layers of `units`, and a softmax over the ten digits."""
    hidden = [
        keras.layers.Dense(config.units, "relu", kernel_initializer="he_normal")
        for _ in range(config.hidden_layers)
    ]
    model = keras.Sequential(
        [keras.Input((64,)), *hidden, keras.layers.Dense(10, "softmax", name="output")],
        name="digits_mlp",
    )
    model.compile(
        keras.optimizers.Adam(config.learning_rate),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model


def run(config, workdir, overwrite=False):
    """Trains, analyses, and leaves saved_model/, profile.*, figures and a report in `workdir`.

    Returns `(model, profile)`.
    """
    folder = studies.new_folder(workdir, overwrite)
    keras.utils.set_random_seed(config.seed)
    train, validation, test = (
        load_dataset(DatasetSpec("digits", split=split, shape=(64,)))
        for split in ("train", "validation", "test")
    )
    model = build(config)
    monitor = EntropyMonitor(alerts=True)
    model.fit(
        *train.arrays,
        validation_data=validation.arrays,
        batch_size=config.batch_size,
        epochs=config.epochs,
        verbose=2,
        callbacks=[monitor],
    )
    profile = analyze_model(
        model,
        test.arrays,
        measures=[
            *(ActivationEntropy(keep_patterns=True), "instability", "state_entropy"),
            "activation_health",
        ],
        baseline=True,
        seed=config.seed,
        verbose=0,
    )
    save_model(model, folder / "saved_model", dataset=test.spec, overwrite=overwrite)
    report.save_profile(profile, folder, overwrite)
    profile.report(folder / "report.html", history=monitor.profiles, overwrite=overwrite)
    rich.print(report.table(profile))
    rich.print(report.summary(profile))
    accuracy = profile.metrics["accuracy"]
    rich.print(f"Test accuracy {accuracy:.3f}. Now open {folder / 'report.html'}.")
    return model, profile


if __name__ == "__main__":
    studies.main(run, "configs/digits.py", "runs/digits")
