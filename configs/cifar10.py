"""Depth study: the same recipe with 2, 4 and 6 Dense layers on CIFAR-10."""

import ml_collections


def get_config(preset="full"):
    config = ml_collections.ConfigDict()
    small = {"full": False, "smoke": True}[preset]
    config.dataset = "digits" if small else "cifar10"
    config.shape = (8, 8, 1) if small else (32, 32, 3)
    config.classes = 10
    config.convolutions = (8,) if small else (24, 48, 96)
    config.kernel_size = 3
    config.depths = (2, 3) if small else (2, 4, 6)  # Dense layers, the output among them
    config.units = 32 if small else 256  # the same in each, so that no curve falls with the width
    config.activation = "relu"
    config.optimizer = "adam"
    config.learning_rate = 1e-3
    config.batch_size = 128
    config.epochs = 2 if small else 8
    config.seeds = 1 if small else 3
    config.tolerance = 0.01
    config.epochs_after = 1  # after the removal of each flat layer
    return config
