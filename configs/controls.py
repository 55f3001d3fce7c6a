"""What moves the entropy of a network besides learning: CIFAR-10, 4 Dense layers."""

import ml_collections


def get_config(preset="full"):
    config = ml_collections.ConfigDict()
    small = {"full": False, "smoke": True}[preset]
    config.dataset = "digits" if small else "cifar10"
    config.shape = (8, 8, 1) if small else (32, 32, 3)
    config.classes = 10
    config.convolutions = (8,) if small else (24, 48, 96)
    config.kernel_size = 3
    config.hidden = (32, 32, 32) if small else (256, 256, 256)  # of one width
    config.narrowing = (32, 16, 12) if small else (512, 128, 32)
    config.factor = 3.0  # of the weights of one layer; the next are divided by it
    config.activation = "relu"
    config.optimizer = "adam"
    config.learning_rate = 1e-3
    config.batch_size = 128
    config.epochs = 2 if small else 5
    config.seeds = 1 if small else 3
    return config
