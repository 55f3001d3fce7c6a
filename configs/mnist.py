"""A LeNet-style network on MNIST: two convolutions, three Dense layers."""

import ml_collections


def get_config(preset="full"):
    config = ml_collections.ConfigDict()
    small = {"full": False, "smoke": True}[preset]
    config.dataset = "digits" if small else "mnist"
    config.shape = (8, 8, 1) if small else (28, 28, 1)
    config.classes = 10
    config.convolutions = (6, 16)
    config.kernel_size = 5
    config.hidden = (120, 84)
    config.activation = "relu"
    config.optimizer = "adam"
    config.learning_rate = 1e-3
    config.batch_size = 128
    config.epochs = 2 if small else 6
    config.seed = 0
    config.images = 4  # whose feature maps are drawn
    config.class_name = "3"  # whose images are looked at one by one
    config.other_class = "8"  # whose patterns are laid over those of the first
    return config
