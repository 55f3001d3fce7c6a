"""The information plane of a small network on MNIST, with tanh and with ReLU, or of a LeNet."""

import ml_collections


def get_config(preset="full"):
    config = ml_collections.ConfigDict()
    small, lenet = {"full": (0, 0), "lenet": (0, 1), "smoke": (1, 0)}[preset]
    config.dataset = "digits" if small else "mnist"
    config.shape = (8, 8, 1) if small else (28, 28, 1)
    config.classes = 10
    config.convolutions = (6, 16) if lenet else ()
    config.kernel_size = 5
    config.hidden = (120, 84) if lenet else (32, 12, 12) if small else (1024, 20, 20, 20)
    config.activations = ("relu",) if lenet else ("tanh", "relu")
    config.optimizer = "adam" if lenet else "sgd"
    config.learning_rate = 1e-3 if lenet else 0.1
    config.batch_size = 128
    config.epochs = 2 if small else 5 if lenet else 20
    config.samples = 200 if small else 2000 if lenet else 3000  # the first of the training images
    config.seed = 0
    return config
