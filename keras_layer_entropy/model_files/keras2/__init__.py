"""Models of Keras 2: read from their files, made again in Keras 3."""
