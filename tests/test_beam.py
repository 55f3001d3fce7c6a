"""Analyses by Beam, in processes of their own: the same as in one pass here.

What a local pass adds up in two floats agrees to 1e-6, counts and kept samples to the bit.
"""

import importlib.util
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers

pytest.importorskip("apache_beam", reason="Apache Beam is not installed")
pytestmark = pytest.mark.tensorflow  # it reads what TensorFlow wrote; states join on each backend

import apache_beam  # noqa: E402
from apache_beam.io.localfilesystem import LocalFileSystem  # noqa: E402

from keras_layer_entropy import EntropyProfile, analyze_model, beam, save_model  # noqa: E402
from keras_layer_entropy.datasets import DatasetSpec, cut, load_dataset  # noqa: E402
from keras_layer_entropy.measures import LogDet, MutualInformation  # noqa: E402

PROCESSES = [
    *("--runner=DirectRunner", "--direct_running_mode=multi_processing"),
    "--direct_num_workers=2",
]
# Another engine than Beam's own, with processes of its own, too.
DASK = ["--runner=apache_beam.runners.dask.dask_runner.DaskRunner"]
COUNT, CLASSES = 70, 3


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    """A data set in three shards, of 0..255 in 2 x 2 x 1."""
    import tensorflow_datasets as tfds

    random = np.random.default_rng(0)
    images = random.integers(0, 256, (COUNT, 2, 2, 1)).astype("uint8")
    folder = str(tmp_path_factory.mktemp("tfds"))

    class Shards(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            label = tfds.features.ClassLabel(num_classes=CLASSES)
            image = tfds.features.Image(shape=(2, 2, 1))
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict({"image": image, "label": label}),
                supervised_keys=("image", "label"),
            )

        def _split_generators(self, manager):
            return {"test": self._generate_examples()}

        def _generate_examples(self):
            for i, image in enumerate(images):
                yield i, {"image": image, "label": int(image.sum()) % CLASSES}

    shards = tfds.download.DownloadConfig(num_shards=3)
    Shards(data_dir=folder).download_and_prepare(download_config=shards)
    assert load_dataset(DatasetSpec("shards", data_dir=folder)).arrays[0].shape == (COUNT, 2, 2, 1)
    return DatasetSpec("shards", split="test", data_dir=folder, shape=(4,))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([
        keras.Input((4,)), layers.Dense(8, "relu", name="a"), layers.Dense(6, "tanh", name="b"),
        layers.Dense(CLASSES, "softmax", name="out"),
    ])  # fmt: skip
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return save_model(model, tmp_path_factory.mktemp("model") / "model.keras")


def assert_same(found, want):
    np.testing.assert_array_equal(found.count, want.count)
    for name, result in want.results.items():
        np.testing.assert_allclose(found[name].per_class, result.per_class, rtol=0, atol=1e-6)
        for key, value in result.whole.items():
            np.testing.assert_allclose(found[name].whole[key], value, rtol=0, atol=1e-6)
    assert found.metrics == pytest.approx(want.metrics, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "runner",
    [
        pytest.param(PROCESSES, id="direct"),
        pytest.param(
            DASK,
            id="dask",
            marks=pytest.mark.skipif(
                importlib.util.find_spec("distributed") is None, reason="Dask is not installed"
            ),
        ),
    ],
)
def test_many_processes_are_one_pass(spec, path, runner):
    measures = ["activation_entropy", LogDet(samples=30), MutualInformation(samples=30)]
    model = keras.saving.load_model(path)
    batches = load_dataset(spec).batches(16)
    want = analyze_model(model, batches, measures=measures, baseline=True, seed=3, verbose=0)
    assert len(cut(spec, 9)) == 8  # over the borders of shards
    found = beam.analyze(
        path, spec, runner, measures=measures, samples=9, batch_size=16, baseline=True, seed=3
    )
    assert_same(found, want)
    assert_same(found.baseline, want.baseline)
    assert found.settings["baseline_seed"] == 3


@pytest.mark.slow
def test_the_command_line(spec, path, tmp_path):
    run = [
        *(sys.executable, "-m", "keras_layer_entropy.analyze", "--model", path, "--dataset"),
        *(spec.name, "--data_dir", spec.data_dir, "--measures=activation_entropy"),
    ]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    profiles = []
    for output, options in (("here", []), ("beam", [f"--beam_options={' '.join(PROCESSES)}"])):
        done = subprocess.run(
            [*run, "--output", tmp_path / output, *options],
            capture_output=True,
            text=True,
            env=environment,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        profiles.append(EntropyProfile.load(tmp_path / output / "profile.json"))
    assert_same(profiles[1], profiles[0])
    assert_same(profiles[1].baseline, profiles[0].baseline)


def test_a_piece_that_is_measured_again_gives_the_same(spec, path):
    transform = beam.Analyze(path, spec, samples=30, measures=LogDet(samples=20))
    work, piece = transform._work, transform._pieces[1]
    first, again = work.measure(piece)["model"], work.measure(piece)["model"]
    assert first.header == again.header
    for name, array in first.arrays.items():
        np.testing.assert_array_equal(array, again.arrays[name])
    assert work.analyzer() is work.analyzer()  # opened once


class Elsewhere(LocalFileSystem):
    """Files of this machine by a name that only Beam knows, as a cloud's are."""

    @classmethod
    def scheme(cls):
        return "elsewhere"

    def match(self, patterns, limits=None):
        found = super().match([_local(pattern) for pattern in patterns], limits)
        for result in found:
            for metadata in result.metadata_list:
                metadata.path = f"elsewhere://{metadata.path}"
        return found

    def open(self, path, *args, **kwargs):
        return super().open(_local(path), *args, **kwargs)


def _local(path):
    return path.removeprefix("elsewhere://")


@pytest.mark.parametrize("form", ["archive", "folder"])
def test_models_lie_where_beam_reads(form, spec, path, tmp_path):
    model = keras.saving.load_model(path)
    there = save_model(model, tmp_path / ("m.keras" if form == "archive" else "m"))
    transform = beam.Analyze(f"elsewhere://{there}", spec)
    opened = transform._work.analyzer().model
    for one, other in zip(opened.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match="no model at"):
        beam.Analyze("elsewhere:///nothing", spec)._work.analyzer()


def test_bad_input(spec, path, tmp_path):
    with pytest.raises(ValueError, match="pass parse="):
        beam.Analyze(path, str(tmp_path / "records-*"))
    with pytest.raises(ValueError, match="No file is like"):
        beam.Analyze(path, str(tmp_path / "records-*"), parse=json.loads)
    with pytest.raises(ValueError, match="has its own features"):
        beam.Analyze(path, spec, parse=json.loads)
    with pytest.raises(ValueError, match="digits is read as a whole"):
        beam.Analyze(path, DatasetSpec("digits"))
    with pytest.raises(Exception, match="labels are no class"), apache_beam.Pipeline() as pipeline:
        # There are labels of three.
        _ = pipeline | beam.Analyze(path, spec, num_classes=2)
