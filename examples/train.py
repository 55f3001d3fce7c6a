"""Train a LeNet-style network on MNIST and watch its Dense layers while it learns.

python examples/train.py --config configs/mnist.py:full --workdir runs/mnist

Leaves saved_model/ (for examples/analyze.py), epochs.png and report.html, and a line per epoch in
history.csv.
"""

import keras
import studies

from keras_layer_entropy import analyze_model, plots, save_model
from keras_layer_entropy.measures import ActivationEntropy


def run(config, workdir, overwrite=False):
    """Trains and watches; returns `(model, EntropyMonitor)`."""
    folder = studies.new_folder(workdir, overwrite)
    keras.utils.set_random_seed(config.seed)
    data = studies.load(config)
    model = studies.build(config, config.hidden)
    log = keras.callbacks.CSVLogger(folder / "history.csv")
    monitor = studies.train(model, data, config, config.seed, callbacks=[log])
    save_model(model, folder / "saved_model", dataset=data.test.spec, overwrite=overwrite)
    profile = analyze_model(
        model,
        data.test.arrays,
        measures=[ActivationEntropy(keep_patterns=True), "instability", "state_entropy"],
        baseline=True,
        seed=config.seed,
        verbose=0,
    )
    profile.report(folder / "report.html", history=monitor.profiles, overwrite=overwrite)
    studies.draw(folder, "epochs.png", plots.entropy_over_epochs(monitor.profiles))
    print(f"Test accuracy {profile.metrics['accuracy']:.4f}. Now open {folder / 'report.html'}.")
    return model, monitor


if __name__ == "__main__":
    studies.main(run, "configs/mnist.py", "runs/mnist")
