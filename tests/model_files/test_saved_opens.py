"""What `save_model` wrote, `load_model` opens as it was; where it can't, that is said."""

import gzip
import inspect
import itertools
import json
import os
import zipfile

import h5py
import keras
import numpy as np
import pytest

from keras_layer_entropy.model_files import UnsafeModelError, load_model, save_model

pytestmark = pytest.mark.tensorflow  # files are the same on every backend
L = keras.layers
NAMES = ("m.keras", "m_dir", "m.h5")
BIG = 50_000_000
SCHEDULES = {
    name: cls
    for name, cls in vars(keras.optimizers.schedules).items()
    if isinstance(cls, type) and cls is not keras.optimizers.schedules.LearningRateSchedule
}
OPTIMIZERS = {
    name: cls
    for name, cls in vars(keras.optimizers).items()
    if isinstance(cls, type)
    and issubclass(cls, keras.optimizers.Optimizer)
    and name not in ("Optimizer", "LossScaleOptimizer", "MultiOptimizer")  # of others
}


def schedule(cls):
    """One whose numbers of steps are all big."""
    values = {"boundaries": [BIG, 2 * BIG], "values": [0.1, 0.01, 0.001], "initial_step": BIG}
    for name, parameter in inspect.signature(cls).parameters.items():
        if "steps" in name:
            values[name] = BIG
        elif parameter.default is parameter.empty and name not in values:
            values[name] = 0.5
    known = inspect.signature(cls).parameters
    return cls(**{name: value for name, value in values.items() if name in known})


def trained(optimizer):
    model = keras.Sequential([keras.Input((4,)), L.Dense(3, "relu"), L.Dense(2)])
    model.compile(optimizer, "mse")
    model.fit(np.ones((8, 4)), np.ones((8, 2)), verbose=0)
    return model


def check_round_trip(model, path, **options):
    again = load_model(save_model(model, path), **options)
    for mine, other in itertools.zip_longest(model.weights, again.weights):
        np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (mine, other)))
    return again


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_schedules_of_many_steps(name, tmp_path):
    assert len(SCHEDULES) >= 6
    for kind, cls in SCHEDULES.items():
        model = trained(keras.optimizers.SGD(schedule(cls)))
        again = check_round_trip(model, tmp_path / f"{kind}_{name}")
        rates = (each.optimizer.get_config()["learning_rate"] for each in (model, again))
        mine, other = (rate["config"] for rate in rates)
        assert mine == other


@pytest.mark.slow
def test_optimizers_with_big_numbers(tmp_path):
    assert len(OPTIMIZERS) >= 10
    for kind, cls in OPTIMIZERS.items():
        options = {"use_ema": True, "ema_overwrite_frequency": BIG, "name": kind}
        again = check_round_trip(trained(cls(0.01, **options)), tmp_path / f"{kind}.keras")
        assert again.optimizer.ema_overwrite_frequency == BIG
    scaled = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.Adam(), initial_scale=2.0**30, dynamic_growth_steps=BIG
    )
    again = check_round_trip(trained(scaled), tmp_path / "scaled.keras")
    assert again.optimizer.dynamic_growth_steps == BIG


@keras.saving.register_keras_serializable("test_saved_opens")
class Dated(L.Layer):
    """Keeps a date, and files of other kinds than text."""

    def __init__(self, made=0, **kwargs):
        super().__init__(**kwargs)
        self.made, self.table = made, [1, 2]

    def get_config(self):
        return super().get_config() | {"made": self.made}

    def call(self, x):
        return x

    def save_assets(self, folder):
        with open(os.path.join(folder, "table.json"), "w") as file:
            json.dump(self.table, file)
        with open(os.path.join(folder, "data.bin"), "wb") as file:
            file.write(bytes(self.table))

    def load_assets(self, folder):
        with open(os.path.join(folder, "table.json")) as file:
            self.table = json.load(file)


LAYERS = {
    "embedding of many words": lambda: L.Embedding(2**24 + 8, 1),
    "hashing": lambda: L.Hashing(2**40, salt=[2**60, 3]),
    "integers for words": lambda: L.IntegerLookup(vocabulary=[2**40, 2**50], oov_token=-(2**40)),
    "most words": lambda: L.IntegerLookup(max_tokens=2**32, vocabulary=[1, 2]),
    "rescaling": lambda: L.Rescaling(2**30, 2**31),
    "masking": lambda: L.Masking(mask_value=-(2**31)),
    "cap": lambda: L.ReLU(max_value=2**30),
    "penalty": lambda: L.ActivityRegularization(l1=10**9),
    "boundaries": lambda: L.Discretization([2**31, 2**32]),
    "seed": lambda: L.Dropout(0.5, seed=2**30 + 1),
    "constant": lambda: L.Dense(2, bias_initializer=keras.initializers.Constant(2**30)),
    "date": lambda: Dated(1_735_689_600, name="m 1.0:fine"),
    "half precision": lambda: L.Dense(2, dtype="mixed_float16"),
    "policy": lambda: L.Dense(2, dtype=keras.DTypePolicy("mixed_bfloat16")),
}


@pytest.mark.parametrize("name", LAYERS)
def test_big_numbers_that_take_no_memory(name, tmp_path):
    model = keras.Sequential([keras.Input((3,)), LAYERS[name]()])
    for file in NAMES[:1] if "many" in name else NAMES[:2] if name == "date" else NAMES:
        again = check_round_trip(model, tmp_path / file)
        assert again.layers[0].get_config() == model.layers[0].get_config()


@pytest.mark.parametrize("option", ["num_thresholds", "num_classes", "ngrams", "num_oov_indices"])
def test_numbers_that_take_memory_at_once_are_limited(option, tmp_path):
    metric = keras.metrics.MeanIoU(3) if option == "num_classes" else keras.metrics.AUC(10)
    layer = L.TextVectorization(ngrams=2, vocabulary=["a"]) if option == "ngrams" else None
    if option == "num_oov_indices":
        layer = L.StringLookup(vocabulary=["a"], num_oov_indices=2)
    shape, dtype = ((1,), "string") if layer else ((2,), "float32")
    model = keras.Sequential([keras.Input(shape, dtype=dtype), layer or L.Dense(1, "sigmoid")])
    model.compile("sgd", "mse", metrics=[] if layer else [metric])
    path = save_model(model, tmp_path / "model")
    config = json.loads((path / "config.json").read_text())

    def set_in(value):
        if isinstance(value, list):
            return [set_in(item) for item in value]
        if not isinstance(value, dict):
            return value
        return {k: 10**10 if k == option else set_in(v) for k, v in value.items()}

    changed = set_in(config)
    assert changed != config
    (path / "config.json").write_text(json.dumps(changed))
    metadata = json.loads((path / "metadata.json").read_text())
    del metadata["config_sha256"]
    (path / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(UnsafeModelError, match=f"{option}=10000000000 asks for too much memory"):
        load_model(path)


def words():
    lookup = L.StringLookup()
    lookup.adapt(np.array(["a", "b", "ü"]))
    return keras.Sequential([keras.Input((1,), dtype="string"), lookup, L.Embedding(9, 2)])


def text():
    layer = L.TextVectorization(output_mode="tf_idf", pad_to_max_tokens=False)
    layer.adapt(np.array(["a b", "b c"]))
    return keras.Sequential([keras.Input((1,), dtype="string"), layer, L.Dense(2)])


@pytest.mark.parametrize("make", [words, text])
def test_vocabularies(make, tmp_path):
    model = make()
    for name in NAMES[:2]:
        again = check_round_trip(model, tmp_path / name)
        assert again.layers[0].get_vocabulary() == model.layers[0].get_vocabulary()
    with pytest.raises(ValueError, match=r"once saved|as \.keras"):
        save_model(model, tmp_path / "m.h5")
    assert not (tmp_path / "m.h5").exists()


@pytest.mark.parametrize("name", NAMES[:2])
def test_files_of_layers_of_ones_own(name, tmp_path):
    model = keras.Sequential([keras.Input((3,)), Dated(), L.Dense(2)])
    model.layers[0].table = [7, 8, 9]
    again = check_round_trip(model, tmp_path / name)
    assert again.layers[0].table == [7, 8, 9]


def test_a_changed_asset_is_found(tmp_path):
    path = save_model(words(), tmp_path / "model")
    (file,) = (path / "assets").rglob("vocabulary.txt")
    file.write_text("a\nb\nc")
    with pytest.raises(ValueError, match=r"vocabulary\.txt was changed since the model was saved"):
        load_model(path)


def test_what_loading_will_take_is_said(tmp_path):
    class Own(L.Layer):
        def call(self, x):
            return x

    with pytest.warns(UserWarning, match=r"takes custom_objects=\{'Own': \.\.\.\}\.$"):
        save_model(keras.Sequential([keras.Input((3,)), Own()]), tmp_path / "own.keras")
    model = keras.Sequential([keras.Input((3,)), L.Lambda(lambda x: 2 * x)])
    with pytest.warns(UserWarning, match="it takes allow_unsafe=True"):
        save_model(model, tmp_path / "lambda.keras")
    load_model(tmp_path / "lambda.keras", allow_unsafe=True)


@keras.saving.register_keras_serializable("test_saved_opens")
class Nameless(L.Layer):
    """Its configuration has no name, as that of many layers of one's own."""

    def __init__(self, start=0.0, **kwargs):
        super().__init__(**kwargs)
        self.start = start

    def get_config(self):
        return {"start": self.start}

    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1], shape[-1]), name="w")

    def call(self, x):
        return keras.ops.matmul(x, self.w)


@keras.saving.register_keras_serializable("test_saved_opens")
class Forgetful(Nameless):
    """What it saves is not what it has."""

    def load_own_variables(self, store):
        pass


def functional(layer):
    inputs = keras.Input((4,))
    x, y = layer()(inputs), layer()(inputs)
    return keras.Model(inputs, L.Dense(2)(layer()(L.Add()([x, L.Dense(4)(y)]))))


def nested(layer):
    inner = keras.Sequential([keras.Input((4,)), layer(), L.Dense(4)])
    return keras.Sequential([keras.Input((4,)), L.Dense(4), layer(), inner, layer()])


@pytest.mark.parametrize("make", [functional, nested])
@pytest.mark.parametrize("name", NAMES)
def test_layers_without_a_name_keep_their_weights(make, name, tmp_path):
    model = make(Nameless)
    again = check_round_trip(model, tmp_path / name)
    x = np.random.default_rng(0).normal(size=(5, 4))
    np.testing.assert_array_equal(again.predict(x, verbose=0), model.predict(x, verbose=0))


def test_other_weights_are_an_error(tmp_path):
    model = keras.Sequential([keras.Input((4,)), Forgetful()])
    with pytest.raises(ValueError, match="does not come back from its file as it was"):
        save_model(model, tmp_path / "m.keras")
    assert list(tmp_path.iterdir()) == []


# What others did to an archive.


def rezipped(source, target, compression=zipfile.ZIP_DEFLATED, prefix="", extra=()):
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for member in old.infolist():
            new.writestr(prefix + member.filename, old.read(member.filename))
        for name in extra:
            new.writestr(name, b"\0\0\0\1Bud1")


@pytest.mark.parametrize("make", [lambda: trained("adam"), words])
def test_archives_zipped_again(make, tmp_path):
    path = save_model(make(), tmp_path / "m.keras")
    left = [".DS_Store", "__MACOSX/._config.json", "assets/.DS_Store", "Thumbs.db", "._x"]
    for number, extra in enumerate([[name] for name in left] + [left]):
        rezipped(path, tmp_path / f"{number}.keras", extra=extra)
        load_model(tmp_path / f"{number}.keras")
    for number in (zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        rezipped(path, tmp_path / f"c{number}.keras", number)
        load_model(tmp_path / f"c{number}.keras")
    rezipped(path, tmp_path / "folder.keras", prefix="m/")
    with pytest.raises(ValueError, match="files in a folder, m/config.json: unpack it"):
        load_model(tmp_path / "folder.keras")


def test_weights_that_are_all_zeros(tmp_path):
    model = keras.Sequential([keras.Input((3000,)), L.Dense(3000), L.Dense(2)])
    model.layers[0].kernel.assign(np.zeros((3000, 3000)))
    rezipped(save_model(model, tmp_path / "m.keras"), tmp_path / "small.keras")
    assert os.path.getsize(tmp_path / "small.keras") < 200_000
    assert not load_model(tmp_path / "small.keras").layers[0].kernel.numpy().any()


def test_junk_around_an_archive(tmp_path):
    model = trained("adam")
    path = save_model(model, tmp_path / "m.keras")
    good = path.read_bytes()
    for data in (b"junk" * 10 + good, good + b"junk" * 10):
        path.write_bytes(data)
        np.testing.assert_array_equal(load_model(path).layers[0].kernel, model.layers[0].kernel)
    for data in (gzip.compress(good), good[: len(good) // 2], b"<!DOCTYPE html><html>"):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="no zip archive and no HDF5 file|cannot be opened"):
            load_model(path)


# Files of Keras 2.0 to 2.2, and of Keras 1.

KERNELS = [np.random.default_rng(0).normal(size=shape) for shape in ((4, 8), (8,), (8, 3), (3,))]


def dense(name, units, **more):
    return {"class_name": "Dense", "config": {"name": name, "units": units, **more}}


def write_old(path, first, version, config=None):
    layers = [dense(first, 8, activation="relu", batch_input_shape=[None, 4])]
    layers.append(dense("dense_2", 3, activation="linear"))
    config = layers if config is None else config(layers)
    kernel, bias, *last = KERNELS
    weights = {first: (kernel, bias), "dense_2": last}
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = version.encode()
        model = {"class_name": "Sequential", "config": config}
        file.attrs["model_config"] = json.dumps(model).encode()
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = [name.encode() for name in weights]
        for name, values in weights.items():
            names = [f"{name}/{end}:0" for end in ("kernel", "bias")]
            inner = group.create_group(name)
            inner.attrs["weight_names"] = [each.encode() for each in names]
            for each, value in zip(names, values, strict=True):
                inner[each] = value


@pytest.mark.slow
@pytest.mark.parametrize("first", ["dense_1", "a/b", "my dense", "dense:0", "x:1/y:2", "ünï"])
@pytest.mark.parametrize("version", ["2.0.8", "2.1.6", "2.2.4", "2.9.0"])
def test_old_sequential_models(version, first, tmp_path):
    is_list = version < "2.2"
    config = None if is_list else lambda layers: {"name": "s", "layers": layers}
    write_old(tmp_path / "m.h5", first, version, config)
    model = load_model(tmp_path / "m.h5")
    x = np.random.default_rng(1).normal(size=(5, 4))
    want = np.maximum(x @ KERNELS[0] + KERNELS[1], 0) @ KERNELS[2] + KERNELS[3]
    # float32: 8 products of numbers of the order of 1
    # (Called, for TensorFlow's graphs take no such names as some of these.)
    np.testing.assert_allclose(model(x), want, atol=1e-5)
    for name in NAMES:
        check_round_trip(model, tmp_path / f"again_{name}")


def test_a_file_of_keras_1_is_named(tmp_path):
    write_old(tmp_path / "m.h5", "dense_1", "1.2.2")
    with pytest.raises(ValueError, match=r"is of Keras 1 \(1\.2\.2\): open it with Keras 2"):
        load_model(tmp_path / "m.h5")
