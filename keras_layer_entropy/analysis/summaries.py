"""What a monitor writes for TensorBoard."""

import numpy as np

from keras_layer_entropy import plots
from keras_layer_entropy.measures.activation_histogram import ActivationHistogram


class Summaries:
    """TensorBoard event files: scalars per layer and class, histograms, figures of each measure."""

    def __init__(self, log_dir):
        import tensorflow as tf

        self._summary = tf.summary
        self._writer = tf.summary.create_file_writer(str(log_dir))

    def write(self, profile):
        """Adds the profile of an epoch."""
        with self._writer.as_default(step=profile.epoch):
            for name, result in profile.results.items():
                self._write_numbers(profile, name, result)
                if isinstance(profile.measures[name], ActivationHistogram):
                    self._write_histograms(name, result)
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

    def _write_histograms(self, name, result):
        """Of counts, in the form in which TensorBoard keeps them: left, right, count."""
        from tensorboard.plugins.histogram import metadata

        for layer, found in result.details.items():
            edges = np.clip(found["edges"], -(2.0**17), 2.0**17)  # a page draws no infinity
            counts = found["counts"].sum(axis=0)
            table = np.stack([edges[:-1], edges[1:], counts], axis=1)
            kept = metadata.create_summary_metadata(None, None)
            self._summary.write(f"{name}_counts/{layer}", table, metadata=kept)

    def close(self):
        """Ends the file."""
        self._writer.close()
