"""A network with more Dense layers than CIFAR-10 needs, to be pruned."""

import ml_collections


def get_config(preset="full"):
    config = ml_collections.ConfigDict()
    small = {"full": False, "smoke": True, "units": False}[preset]
    units = preset == "units"
    config.dataset = "digits" if small else "cifar10"
    config.shape = (8, 8, 1) if small else (32, 32, 3)
    config.classes = 10
    config.convolutions = (8,) if small else (24, 48, 96)
    config.kernel_size = 3
    config.hidden = (32, 32) if small else (256,) * 5
    config.activation = "relu"
    config.optimizer = "adam"
    config.learning_rate = 1e-3
    config.batch_size = 128
    config.epochs = 2 if small else 8
    config.seed = 0
    config.remove = "units" if units else "layers"
    config.criterion = "reconstruction" if units else "linearity"
    config.target = {"flops": 0.5} if units else {}  # {} to go on while accuracy stays
    config.max_drop = 1.0 if units else 0.01
    config.epochs_after = 1  # after each removal
    return config
