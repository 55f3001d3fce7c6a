"""A deep MLP on the handwritten digits that come with scikit-learn."""

import ml_collections


def get_config(preset="full"):
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.hidden_layers = 8
    config.units = 128
    config.learning_rate = 1e-3
    config.batch_size = 64
    config.epochs = {"full": 20, "smoke": 1}[preset]
    return config
