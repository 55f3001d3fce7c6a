"""A poorly trained network that is repaired by taking layers out: CIFAR-10, 4 Dense layers."""

import ml_collections


def get_config(preset="full"):
    config = ml_collections.ConfigDict()
    small = {"full": False, "smoke": True}[preset]
    config.dataset = "digits" if small else "cifar10"
    config.shape = (8, 8, 1) if small else (32, 32, 3)
    config.classes = 10
    config.convolutions = (8,) if small else (24, 48, 96)
    config.kernel_size = 3
    config.hidden = (16, 16, 16) if small else (256, 256, 256)
    # Weak on purpose: sigmoids one behind another let little gradient through.
    config.activation = "sigmoid"
    config.optimizer = "sgd"
    config.learning_rate = 0.15
    config.batch_size = 128
    config.epochs = 1 if small else 6
    config.seeds = 1 if small else 3
    config.removals = 2
    config.epochs_after = 1 if small else 3  # after each removal
    return config
