"""The information plane of a small network on MNIST, with tanh and with ReLU."""

import ml_collections


def get_config(preset="full"):
    config = ml_collections.ConfigDict()
    small = {"full": False, "smoke": True}[preset]
    config.dataset = "digits" if small else "mnist"
    config.shape = (8, 8, 1) if small else (28, 28, 1)
    config.classes = 10
    config.convolutions = ()
    config.hidden = (32, 12, 12) if small else (1024, 20, 20, 20)
    config.activations = ("tanh", "relu")
    config.optimizer = "sgd"
    config.learning_rate = 0.1
    config.batch_size = 128
    config.epochs = 2 if small else 20
    config.samples = 200 if small else 3000  # the first of the training images
    config.seed = 0
    return config
