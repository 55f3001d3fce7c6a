"""Models of Keras 2: what they computed there, and how their training went on there.

The files and the numbers are Keras 2's own, written by `make_keras2_fixtures.py`.
"""

import json
import pathlib
import shutil
import zipfile

import h5py
import keras
import numpy as np
import pytest
from command_lines import call
from precision import roundings

from keras_layer_entropy import EntropyProfile, load_model
from keras_layer_entropy.model_files import model_format

pytestmark = pytest.mark.tensorflow
FOLDER = pathlib.Path(__file__).parent / "keras2"
KINDS = sorted(path.stem for path in FOLDER.glob("*.zip"))
FORMATS = {"saved_model": "saved_model", "h5": "model.h5", "keras": "model.keras"}

REFUSED = {
    "refused_lambda": "'twice' \\(Lambda\\)",
    "refused_operations": "'tf.nn.relu' \\(TFOpLambda\\)",
    "refused_slice": "SlicingOpLambda",
    "refused_custom_activation": "activation 'bent' is not one of Keras's",
    "refused_custom_layer": "'twice' \\(Twice\\)",
    "refused_registered_layer": "\\((fixtures>)?Twice\\)",
    "refused_subclassed_model": "Subclassed",
    "refused_module": "an export without layers",
    "refused_export": "an export without layers",
    "refused_hard_sigmoid": "'hard_sigmoid' is",
    "refused_random_crop": "RandomCrop",
    "refused_training_argument": "BatchNormalization is called with training=True",
    "locally_connected": "LocallyConnected2D",
}
# Training goes on otherwise in Keras 3, which computes these steps in another way: batch statistics
# step by step in TimeDistributed, the kernel's norm in SpectralNormalization, Adam for the sparse
# gradient of an Embedding.
OTHER_TRAINING = ("merged_masks", "time_distributed", "spectral_normalization", "lstm_text")
# Optimizers whose state Keras 3 keeps in another form; said in a warning.
FRESH = ("nadam", "legacy_nadam", "adafactor")


def unpacked(kind, name, tmp_path):
    """The path of the model, and the arrays that were recorded with it."""
    with zipfile.ZipFile(FOLDER / f"{kind}.zip") as archive:
        archive.extractall(tmp_path)
    path = tmp_path / FORMATS[name]
    data = tmp_path / "data.npz"
    return path, dict(np.load(data)) if data.is_file() else {}


def written(kind, name):
    with zipfile.ZipFile(FOLDER / f"{kind}.zip") as archive:
        return any(member.startswith(FORMATS[name]) for member in archive.namelist())


def inputs(data):
    if "x" in data:
        return data["x"]
    values = [
        data[f"x_{i}"] for i in range(len([k for k in data if k[:2] == "x_" and k[2:].isdigit()]))
    ]
    return dict(zip(data["x_names"], values, strict=True)) if "x_names" in data else values


def outputs(model, data):
    found = model(inputs(data), training=False)  # eager: nothing to trace
    if isinstance(found, dict):
        found = [found[name] for name in data["y_names"]]
    found = found if isinstance(found, list) else [found]
    return [keras.ops.convert_to_numpy(value) for value in found]


CASES = [(kind, name) for kind in KINDS for name in FORMATS if written(kind, name)]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("kind", "name"), [case for case in CASES if case[0] not in (*REFUSED, "merged_masks")]
)
def test_outputs_are_those_of_keras_2(kind, name, tmp_path):
    path, data = unpacked(kind, name, tmp_path)
    model = load_model(path)
    # float32: the same operations, in an order that Keras may change. Half precision: recorded on
    # another processor, after five roundings (sum and bias of two layers, a normalisation).
    tolerance = roundings(5, kind) if "mixed" in kind else 1e-6
    for i, found in enumerate(outputs(model, data)):
        np.testing.assert_allclose(found, data[f"y_{i}"], rtol=10 * tolerance, atol=tolerance)


@pytest.mark.parametrize(("kind", "name"), [case for case in CASES if case[0] in REFUSED])
def test_what_cannot_be_rebuilt_is_named(kind, name, tmp_path):
    path, _ = unpacked(kind, name, tmp_path)
    with pytest.raises(ValueError, match=REFUSED[kind]) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)


def trained(kind):
    with zipfile.ZipFile(FOLDER / f"{kind}.zip") as archive, archive.open("data.npz") as file:
        return "after_0" in np.load(file)


def in_order_of_keras_2(model):
    """Layer by layer, in each the trainable weights first; each once."""
    found = {}
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            weights = in_order_of_keras_2(layer)
        else:
            weights = layer.trainable_weights + layer.non_trainable_weights
        found |= {id(weight): weight for weight in weights}
    return list(found.values())


CONTINUED = [
    (kind, name)
    for kind, name in CASES
    if kind not in (*REFUSED, *OTHER_TRAINING, *FRESH)
    and trained(kind)
    and not (name == "keras" and "legacy" in kind)  # Keras 2 wrote no state there
    and (name == "saved_model" or "adam" in kind or kind in ("nested", "legacy_rmsprop", "sgd_ema"))
]


@pytest.mark.parametrize(("kind", "name"), CONTINUED)
def test_training_goes_on_as_in_keras_2(kind, name, tmp_path):
    """Loss and weights after one more step: the weights, the loss and the optimizer's state."""
    path, data = unpacked(kind, name, tmp_path)
    model = load_model(path)
    # Tracing takes longer than one step; half precision rounds otherwise without it.
    model.run_eagerly = "mixed" not in kind
    targets = data.get("targets")
    if targets is None:
        targets = [data[f"targets_{i}"] for i in range(len(model.outputs))]
    loss = np.ravel(model.train_on_batch(inputs(data), targets))[0]
    # Recorded on another processor, after as many roundings as the outputs above.
    rounding = roundings(5, kind) if "mixed" in kind else 0.0
    np.testing.assert_allclose(loss, np.ravel(data["loss"])[0], rtol=max(1e-5, rounding))
    after = {}  # of one shape and name: in the order of the layers
    for i, name in enumerate(data["after_names"]):
        value = data[f"after_{i}"]
        leaf = str(name).split("/")[-1].removeprefix("depthwise_")  # so called in Keras 3
        after.setdefault((leaf, value.shape), []).append(value)
    # On images Keras 2 corrects the moving variance by N / (N - 1), Keras 3 does not.
    # Gradients are rounded twice as often and are differences of numbers some ten times as large;
    # Adam takes a step of 0.01 by what they are relative to one another.
    rounding = 0.01 * roundings(100, kind) if "mixed" in kind else 0.0
    tolerance = max(1e-4 if "cnn" in kind else 1e-6, rounding)
    for weight in in_order_of_keras_2(model):
        value = keras.ops.convert_to_numpy(weight)
        leaf = weight.path.split("/")[-1].removeprefix("depthwise_")
        other = after[leaf, value.shape].pop(0)
        size = max(1.0, np.max(np.abs(other), initial=0))  # of large weights the last digit is, too
        assert np.max(np.abs(value - other), initial=0) < tolerance * size, weight.path


@pytest.mark.parametrize("kind", FRESH)
def test_state_that_cannot_be_taken_over_is_said(kind, tmp_path):
    path, _ = unpacked(kind, "saved_model", tmp_path)
    with pytest.warns(UserWarning, match="The optimizer starts without its state"):
        load_model(path)


def test_missing_state_is_said(tmp_path):
    path, _ = unpacked("legacy_adam", "keras", tmp_path)
    with pytest.warns(UserWarning, match="starts without its state: it is not in the file"):
        load_model(path)


def test_an_unknown_loss_is_said(tmp_path):
    path, data = unpacked("custom_loss", "saved_model", tmp_path)
    with pytest.warns(UserWarning, match="without its loss and metrics, .*squared"):
        assert not load_model(path).compiled


def test_custom_layers_are_rebuilt_when_they_are_given(tmp_path):
    @keras.saving.register_keras_serializable("fixtures")
    class Twice(keras.layers.Layer):
        def call(self, inputs):
            return 2 * inputs

    path, data = unpacked("refused_registered_layer", "saved_model", tmp_path)
    try:
        found = outputs(load_model(path), data)[0]
        # The absolute part for sums that cancel, on another processor than where it was recorded.
        np.testing.assert_allclose(found, data["y_0"], rtol=1e-5, atol=1e-6)
    finally:
        keras.saving.get_custom_objects().clear()


def test_the_graph_is_never_read(tmp_path):
    """Only TensorFlow before 2.5 kept the layers in saved_model.pb."""
    path, data = unpacked("mlp_called", "saved_model", tmp_path)
    (path / "saved_model.pb").write_bytes(b"not a graph")
    np.testing.assert_allclose(outputs(load_model(path), data)[0], data["y_0"], rtol=1e-5)


@pytest.mark.slow
def test_command_lines(tmp_path):
    path, data = unpacked("mlp_called", "saved_model", tmp_path)
    assert model_format(path) == "saved_model"
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(120, *data["x"].shape[1:])), np.tile([0, 1, 2], 40)
    np.savez(tmp_path / "data.npz", x=x.astype("float32"), y=y)
    flags = ("--model", path, "--dataset", tmp_path / "data.npz", "--scale=1")
    code, out, err = call("analyze", *flags, "--output", tmp_path / "profile")
    assert code == 0, err
    profile = EntropyProfile.load(tmp_path / "profile" / "profile.json")
    assert np.isfinite(profile.entropy).all()

    quick = ("--criterion=last", "--epochs=1", "--max_drop=1", "--max_removals=1")
    code, out, err = call("prune", *flags, *quick)
    assert code == 0, err
    pruned = load_model(tmp_path / "saved_model_pruned")
    dense = [layer for layer in pruned.layers if isinstance(layer, keras.layers.Dense)]
    assert len(dense) == len(profile.layers) - 1


def test_weights_of_an_h5_file_go_by_their_names(tmp_path):
    """Two layers of one shape in a nested model, listed the other way round."""
    path, data = unpacked("nested_sequential_in_functional", "h5", tmp_path)
    with h5py.File(path, "r+") as file:
        group = file["model_weights/inner"]
        names = list(group.attrs["weight_names"])
        group.attrs["weight_names"] = names[2:] + names[:2]
    np.testing.assert_allclose(outputs(load_model(path), data)[0], data["y_0"], rtol=1e-5)


def test_state_of_other_variables_is_not_mixed_up(tmp_path):
    """An optimizer that trained more variables than are trainable now has more slots."""
    path, _ = unpacked("legacy_adam", "h5", tmp_path)
    with h5py.File(path, "r+") as file:
        group = file["optimizer_weights"]
        names = [name for name in group.attrs["weight_names"] if "dense_2/bias" not in name]
        group.attrs["weight_names"] = names
    with pytest.warns(UserWarning, match="The optimizer starts without its state"):
        load_model(path)


def test_a_half_written_h5_file_is_named(tmp_path):
    """Keras 2 leaves one behind when two weights have the same name."""
    path, _ = unpacked("mlp_called", "h5", tmp_path)
    with h5py.File(path, "r+") as file:
        group = file["model_weights/dense"]
        group.attrs["weight_names"] = list(group.attrs["weight_names"][:1]) * 2
    with pytest.raises(ValueError, match="two weights of one name"):
        load_model(path)


def test_masks_that_are_joined_otherwise_are_said(tmp_path):
    path, _ = unpacked("merged_masks", "saved_model", tmp_path)
    with pytest.warns(UserWarning, match="'concatenate' merges tensors with different masks"):
        load_model(path)


def test_frozen_layers_stay_frozen(tmp_path):
    path, _ = unpacked("frozen_attention", "saved_model", tmp_path)
    assert [weight.name for weight in load_model(path).trainable_weights] == ["kernel", "bias"]


def as_pair(kind, tmp_path):
    """An architecture and its weights in two files, as `to_json` and `save_weights` wrote them."""
    path, data = unpacked(kind, "h5", tmp_path)
    folder = tmp_path / "pair"
    folder.mkdir()
    with h5py.File(path) as whole, h5py.File(folder / "weights.h5", "w") as weights:
        config = json.loads(whole.attrs["model_config"])
        config["keras_version"] = str(whole.attrs["keras_version"])
        for name in whole["model_weights"]:
            whole.copy(f"model_weights/{name}", weights)
        weights.attrs.update(whole["model_weights"].attrs)
    (folder / "model.json").write_text(json.dumps(config))
    return folder / "model.json", data


@pytest.mark.parametrize("kind", ["mlp", "cnn", "nested", "shared_layer", "lstm"])
def test_an_architecture_and_its_weights_in_two_files(kind, tmp_path):
    path, data = as_pair(kind, tmp_path)
    assert model_format(path) == "json"
    model = load_model(path)
    whole = load_model(unpacked(kind, "h5", tmp_path / "again")[0])
    for found, expected in zip(outputs(model, data), outputs(whole, data), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert not model.compiled


def test_weights_that_are_not_beside_their_architecture(tmp_path):
    path, _ = as_pair("mlp", tmp_path)
    shutil.copy(path.parent / "weights.h5", path.parent / "other.h5")
    with pytest.raises(
        ValueError, match=r"one \.h5 file .* expected beside model\.json; found other\.h5, w"
    ):
        load_model(path)
    shutil.copy(path.parent / "weights.h5", path.parent / "model.h5")  # of its name
    load_model(path)
    for file in path.parent.glob("*.h5"):
        file.unlink()
    with pytest.raises(ValueError, match="found none"):
        load_model(path)
    path.write_text('{"a": 1}')
    with pytest.raises(ValueError, match="it is no architecture of Keras 2"):
        load_model(path)
