"""What the single kernels of a convolution tell: MNIST or CIFAR-10, two convolution blocks."""

import ml_collections


def get_config(preset="full"):
    config = ml_collections.ConfigDict()
    small, color = {"full": (0, 0), "cifar10": (0, 1), "smoke": (1, 0)}[preset]
    config.dataset = "digits" if small else "cifar10" if color else "mnist"
    config.shape = (8, 8, 1) if small else (32, 32, 3) if color else (28, 28, 1)
    config.classes = 10
    config.convolutions = (6, 16)
    config.kernel_size = 5
    config.hidden = (120, 84)
    config.activation = "relu"
    config.optimizer = "adam"
    config.learning_rate = 1e-3
    config.batch_size = 128
    config.epochs = 2 if small else 6
    config.seeds = 1 if small else 3
    config.samples = 2000  # of the validation data, to look at the kernels with
    config.draws = 3 if small else 20  # random kernels, to compare the chosen ones with
    config.images = 6  # whose maps are drawn
    return config
