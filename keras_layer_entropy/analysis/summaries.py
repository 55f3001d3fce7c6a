"""What a monitor writes for TensorBoard."""

import numpy as np

from keras_layer_entropy import plots


class Summaries:
    """TensorBoard event files: scalars per layer and per class, and the figures of each measure."""

    def __init__(self, log_dir):
        import tensorflow as tf

        self._summary = tf.summary
        self._writer = tf.summary.create_file_writer(str(log_dir))

    def write(self, profile):
        """Adds the profile of an epoch."""
        with self._writer.as_default(step=profile.epoch):
            for name, result in profile.results.items():
                self._write_numbers(profile, name, result)
                known = np.isfinite(result.per_class).any()
                for panel in profile.measures[name].panels if known else ():
                    picture = plots.pixels(plots.panel(profile, name, panel))
                    self._summary.image(f"{name}/{panel.kind}", picture[None])
        self._writer.flush()

    def _write_numbers(self, profile, name, result):
        for key, values in {name: result.mean, **result.columns(name)}.items():
            for layer, value in zip(profile.layers, values, strict=True):
                self._summary.scalar(f"{key}/{layer}", value)
        for layer, row in zip(profile.layers, result.per_class, strict=True):
            for of_class, value in zip(profile.classes, row, strict=True):
                self._summary.scalar(f"{name}_by_class/{layer}/{of_class}", value)

    def close(self):
        """Ends the file."""
        self._writer.close()
