"""Networks and data on which the criteria of pruning are compared."""

import ml_collections

_PRESETS = {
    "digits": dict(dataset="digits", hidden=8, units=128, epochs=20, batch_size=64),
    "digits_7": dict(dataset="digits", hidden=7, units=128, epochs=12, batch_size=64),
    "mnist_128": dict(dataset="mnist", hidden=8, units=128, epochs=5, batch_size=128),
    "mnist_256": dict(dataset="mnist", hidden=8, units=256, epochs=5, batch_size=128),
    "cifar10": dict(dataset="cifar10", hidden=5, units=256, epochs=12, batch_size=128),
}


def get_config(preset="digits"):
    config = ml_collections.ConfigDict(_PRESETS[preset])
    config.name = preset
    config.convolutions = (32, 64, 128) if preset == "cifar10" else ()
    config.removals = config.hidden - (1 if preset == "cifar10" else 2)
    config.calibration = 10_000  # samples for regressions and rankings
    config.retraining = 5 if config.dataset == "digits" else 1  # epochs after each removal
    config.retrained = ("linearity",) if preset == "cifar10" else ("linearity", "entropy_gradient")
    # Numbers of removed layers for which a network of that depth is trained from scratch.
    config.scratch = (3,) if preset == "cifar10" else (config.hidden // 2, config.removals)
    config.learning_rate = 1e-3
    return config
