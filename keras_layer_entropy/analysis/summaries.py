"""What a monitor writes for TensorBoard."""

from keras_layer_entropy import plots


class Summaries:
    """TensorBoard event files: scalars per layer and per class, the curve and the heat map."""

    def __init__(self, log_dir):
        import tensorflow as tf

        self._summary = tf.summary
        self._writer = tf.summary.create_file_writer(str(log_dir))

    def write(self, profile):
        with self._writer.as_default(step=profile.epoch):
            for name, values in profile.layer_values.items():
                for layer, value in zip(profile.layers, values, strict=True):
                    self._summary.scalar(f"{name}/{layer}", value)
            for measure, values in profile.values.items():
                for layer, row, mean in zip(
                    profile.layers, values, profile.mean_of(measure), strict=True
                ):
                    self._summary.scalar(f"{measure}/{layer}", mean)
                    for name, value in zip(profile.classes, row, strict=True):
                        self._summary.scalar(f"{measure}_by_class/{layer}/{name}", value)
                for name, draw in (("curve", plots.entropy_curve), ("heatmap", plots.heatmap)):
                    picture = plots.pixels(draw(profile, measure))
                    self._summary.image(f"{measure}/{name}", picture[None])
        self._writer.flush()

    def close(self):
        self._writer.close()
