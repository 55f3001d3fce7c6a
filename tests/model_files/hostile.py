"""Model files that must be refused, and ordinary models that must not.

The payload of a hostile file creates an empty marker file, nothing else. `runs_in_plain_keras` is
what Keras 3.15.1 was seen to do with it; what Keras itself refuses by now did run in older ones.
"""

import base64
import contextlib
import dataclasses
import functools
import io
import json
import marshal
import os
import pathlib
import pickle
import stat
import tempfile
import warnings
import zipfile
from collections.abc import Callable

import h5py
import keras
import numpy as np
from keras import layers, ops

FORMATS = ("keras", "directory", "h5")
SUFFIXES = {"keras": ".keras", "directory": "", "h5": ".h5", "saved_model": ""}
MARKER = "ran.png"  # some payloads can only write pictures, which must be called so
SECRET = "the content of a file that is no part of the model"
_WEIGHTS = "model.weights.h5"


@dataclasses.dataclass(frozen=True)
class Hostile:
    """One file that must be refused.

    Attributes:
        name: what is wrong with it.
        format: `"keras"`, `"directory"`, `"h5"` or `"saved_model"`.
        make: `make(path, marker)` writes it at `path`; its payload, if any, creates `marker`.
        harm: what it does to who opens it.
        runs_in_plain_keras: when the payload was seen to create the marker: `"load"`
            (`keras.saving.load_model` as it is), `"unsafe load"` (with `safe_mode=False`),
            `"unsafe call"` or `"unsafe fit"` (in `predict` or `fit` after that); `""` if it never
            was, or has none. What other harm was seen is in `harm`.
        costly: plain Keras must not be tried on it: it takes gigabytes, or hours.
    """

    name: str
    format: str
    make: Callable
    harm: str
    runs_in_plain_keras: str = ""
    costly: bool = False

    def __str__(self):
        return f"{self.name}-{self.format}".replace(" ", "_")


# Good models, edited


def _dense():
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(3, "relu", name="a"), layers.Dense(2, name="out")],
        name="sequential",
    )
    model.compile("adam", "mean_squared_error", metrics=["accuracy"])
    return model


def _lookup():
    lookup = layers.StringLookup(name="a")
    lookup.adapt(np.array(["a", "b"]))  # so that the vocabulary is an asset
    return keras.Sequential([keras.Input((1,), dtype="string"), lookup])


@functools.cache
def _saved(kind, model):
    """The files of a saved model: `{name: content}`; the name of a single file is `"."`."""
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory) / f"model{SUFFIXES[kind]}"
        model().save(path, **({"zipped": False} if kind == "directory" else {}))
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        return {str(file.relative_to(path)): file.read_bytes() for file in files}


def _write_good(path, kind, model=_dense):
    for name, content in _saved(kind, model).items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)


def _write_zip(path, members):
    """Writes `[(name or ZipInfo, bytes)]`; names may occur twice."""
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, content in members:
            archive.writestr(name, content)


@contextlib.contextmanager
def _members(path):
    """The members of a zip as a dict, written back after it was changed."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    yield members
    _write_zip(path, members.items())


@contextlib.contextmanager
def _config(path, kind):
    """The configuration of a model, written back after it was changed.

    What an `.h5` file calls `training_config` and `optimizer_config` goes by the newer names.
    """
    if kind == "h5":
        with h5py.File(path, "r+") as file:
            config = json.loads(file.attrs["model_config"])
            training = config["compile_config"] = json.loads(file.attrs["training_config"])
            training["optimizer"] = training.pop("optimizer_config")
            yield config
            training = config.pop("compile_config")
            training["optimizer_config"] = training.pop("optimizer")
            file.attrs["training_config"] = json.dumps(training)
            file.attrs["model_config"] = json.dumps(config)
    elif kind == "keras":
        with _members(path) as members:
            config = json.loads(members["config.json"])
            yield config
            members["config.json"] = json.dumps(config).encode()
    else:
        config = json.loads((path / "config.json").read_text())
        yield config
        (path / "config.json").write_text(json.dumps(config))


@contextlib.contextmanager
def _weights(path, kind):
    """The HDF5 file with the weights, open for changes."""
    if kind == "keras":
        with _members(path) as members, tempfile.TemporaryDirectory() as directory:
            file = pathlib.Path(directory) / _WEIGHTS
            file.write_bytes(members[_WEIGHTS])
            with h5py.File(file, "r+") as opened:
                yield opened
            members[_WEIGHTS] = file.read_bytes()
    else:
        with h5py.File(path / _WEIGHTS if kind == "directory" else path, "r+") as opened:
            yield opened


def _in_config(name, harm, edit, runs="", formats=FORMATS, costly=False):
    """A kind made by `edit(config, path, marker)`; `runs` may be a dict by format."""

    def make_for(kind):
        def make(path, marker):
            _write_good(path, kind)
            with _config(path, kind) as config:
                edit(config, path, marker)

        return make

    for kind in formats:
        seen = runs.get(kind, "") if isinstance(runs, dict) else runs
        yield Hostile(name, kind, make_for(kind), harm, seen, costly)


def _in_weights(name, harm, edit, costly=False):
    """A kind made by `edit(parent, name, path)` of one dataset of the weights, or its group."""

    def make_for(kind):
        def make(path, marker):
            _write_good(path, kind)
            with _weights(path, kind) as file:
                group = "model_weights/a/sequential/a" if kind == "h5" else "layers/dense/vars"
                names = sorted(file[group])
                edit(file[group], names[-1], path)

        return make

    for kind in FORMATS:
        yield Hostile(name, kind, make_for(kind), harm, costly=costly)


# Pieces of configurations


def _code(marker, arguments="*args, **kwargs", result="args[0]"):
    """Marshalled code of a function that creates the marker, as Keras writes it."""
    body = f"(__import__('pathlib').Path({str(marker)!r}).touch(), {result})[1]"
    function = eval(f"lambda {arguments}: {body}")
    return base64.encodebytes(marshal.dumps(function.__code__)).decode()


def _lambda(marker, **kwargs):
    code = _code(marker, **kwargs)
    # `Lambda` reads the one half, everything else the other.
    config = {"code": code, "defaults": None, "closure": None, "value": [code, None, None]}
    return {"class_name": "__lambda__", "config": config}


def _object(name, /, **config):
    module, _, class_name = name.rpartition(".")
    return {
        "module": module or None,
        "class_name": class_name,
        "config": config,
        "registered_name": None,
    }


def _function(name):
    module, _, function = name.rpartition(".")
    return {
        "module": module,
        "class_name": "function",
        "config": function,
        "registered_name": function,
    }


def _layer(config, index=1):
    return config["config"]["layers"][index]


def _set_layer(config, layer):
    layer["config"].setdefault("name", "a")
    config["config"]["layers"][1] = layer


def _insert_layer(config, layer):
    layer["config"].setdefault("name", "inserted")
    config["config"]["layers"].insert(2, layer)


def _node(config, operation, args):
    """Makes the model a functional one in which `operation` is called with `args`."""
    source = _layer(config, 0) | {"name": "x", "inbound_nodes": []}
    source["config"]["name"] = "x"
    operation["config"]["name"] = "op"
    operation |= {"name": "op", "inbound_nodes": [{"args": args, "kwargs": {}}]}
    config |= {"module": "keras.src.models.functional", "class_name": "Functional"}
    config["config"] = {
        "name": "functional",
        "trainable": True,
        "layers": [source, operation],
        "input_layers": [["x", 0, 0]],
        "output_layers": [["op", 0, 0]],
    }
    config.pop("build_config", None)


def _scaled(spec):
    inner = _object("keras.optimizers.SGD", learning_rate=spec)
    return _object("keras.optimizers.LossScaleOptimizer", inner_optimizer=inner)


_TEXT = {
    "max_tokens": 9,
    "split": "whitespace",
    "ngrams": None,
    "output_mode": "int",
    "vocabulary": ["a"],
}

# Where a configuration can name a class or function: name -> put(config, spec).
PLACES = {
    "layer": lambda c, s: _set_layer(c, s | {"config": dict(s["config"])}),
    "activation": lambda c, s: _layer(c)["config"].update(activation=s),
    "initializer": lambda c, s: _layer(c)["config"].update(kernel_initializer=s),
    "regularizer": lambda c, s: _layer(c)["config"].update(kernel_regularizer=s),
    "constraint": lambda c, s: _layer(c)["config"].update(kernel_constraint=s),
    "dtype": lambda c, s: _layer(c)["config"].update(dtype=s),
    "quantization": lambda c, s: _layer(c)["config"].update(quantization_config=s),
    "value of an initializer": lambda c, s: _layer(c)["config"].update(
        bias_initializer=_object("keras.initializers.Constant", value=s)
    ),
    "wrapped layer": lambda c, s: _set_layer(c, _object("keras.layers.TimeDistributed", layer=s)),
    "wrapped layer backwards": lambda c, s: _set_layer(
        c,
        _object(
            "keras.layers.Bidirectional",
            layer=_object("keras.layers.GRU", units=2),
            backward_layer=s,
        ),
    ),
    "cell": lambda c, s: _set_layer(c, _object("keras.layers.RNN", cell=s)),
    "cell of cells": lambda c, s: _set_layer(
        c,
        _object("keras.layers.RNN", cell=_object("keras.layers.StackedRNNCells", cells=[s])),
    ),
    "pipeline": lambda c, s: _insert_layer(c, _object("keras.layers.Pipeline", layers=[s])),
    "lambda function": lambda c, s: _insert_layer(c, _object("keras.layers.Lambda", function=s)),
    "lambda arguments": lambda c, s: _insert_layer(
        c,
        _object(
            "keras.layers.Lambda",
            function=_function("keras.activations.relu"),
            arguments={"threshold": s},
        ),
    ),
    "lambda output shape": lambda c, s: _insert_layer(
        c,
        _object(
            "keras.layers.Lambda", function=_function("keras.activations.relu"), output_shape=s
        ),
    ),
    "standardize": lambda c, s: _set_layer(
        c, _object("keras.layers.TextVectorization", standardize=s, **_TEXT)
    ),
    "mapped function": lambda c, s: _node(
        c,
        _object("keras.src.ops.core.VectorizedMap", function=s),
        [
            {
                "class_name": "__keras_tensor__",
                "config": {
                    "shape": [None, 4],
                    "dtype": "float32",
                    "keras_history": ["x", 0, 0],
                },
            }
        ],
    ),
    "argument of an operation": lambda c, s: _node(
        c, _object("keras.src.ops.core.Switch"), [0, [s], 1.0]
    ),
    "build_config": lambda c, s: _layer(c).update(build_config={"input_shape": s}),
    "loss": lambda c, s: c["compile_config"].update(loss=s),
    "loss among losses": lambda c, s: c["compile_config"].update(loss={"out": s}),
    "function of a loss": lambda c, s: c["compile_config"].update(
        loss=_object("keras.src.losses.losses.LossFunctionWrapper", fn=s, name="loss")
    ),
    "metric": lambda c, s: c["compile_config"].update(metrics=[s]),
    "function of a metric": lambda c, s: c["compile_config"].update(
        metrics=[_object("keras.metrics.MeanMetricWrapper", fn=s, name="metric")]
    ),
    "optimizer": lambda c, s: c["compile_config"].update(optimizer=s),
    "learning rate": lambda c, s: c["compile_config"].update(
        optimizer=_object("keras.optimizers.Adam", learning_rate=s)
    ),
    "optimizer of each variable": lambda c, s: c["compile_config"].update(
        optimizer=_object("keras.optimizers.MultiOptimizer", optimizer_map=s)
    ),
    "learning rate of a scaled optimizer": lambda c, s: c["compile_config"].update(
        optimizer=_scaled(s)
    ),
}


def _called(function, *args):
    """An edit: while the model is made, the public `function` is called with `args`.

    `Switch` calls what it is given with what it is given, when the graph of the model is made.
    """

    def edit(config, path, marker):
        values = [value(path, marker) if callable(value) else value for value in args]
        switch = _object("keras.src.ops.core.Switch")
        _node(config, switch, [0, [function], *values])

    return edit


def _graph_beside(path, marker):
    """A SavedModel that the model can name: inside a directory, beside a file."""
    graph = path / "assets" / "graph" if path.is_dir() else path.with_name(f"{path.name}.graph")
    write_graph(graph, marker)
    return str(graph)


def _tfsm(path, marker):
    graph = _graph_beside(path, marker)
    return _object("keras.layers.TFSMLayer", filepath=graph, call_endpoint="serve", name="a")


class _Pickled:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path(self.marker),)


def _torch(path, marker):
    module = base64.b64encode(pickle.dumps(_Pickled(marker))).decode()
    return _object("keras.layers.TorchModuleWrapper", module=module, name="a")


def _jax(path, marker):
    arguments = {"arguments": "rng, inputs", "result": "{}"}
    call = _lambda(marker, arguments="params, inputs", result="inputs")
    return _object(
        "keras.layers.JaxLayer", call_fn=call, init_fn=_lambda(marker, **arguments), name="a"
    )


def _flax(path, marker):
    module = _lambda(marker, arguments="*args", result="None")
    return _object("keras.layers.FlaxLayer", module=module, method="touch", name="a")


def _not_h5(runs):
    return {"keras": runs, "directory": runs}


def _placed(place, spec):
    """An edit: `spec`, a dict or `spec(path, marker)`, is put at a place."""
    return lambda c, p, m: PLACES[place](c, spec(p, m) if callable(spec) else spec)


def _code_in_configurations():
    fit = _not_h5("unsafe fit")  # of an .h5 file Keras never disables the safe mode of these
    runs_lambda = {
        "activation": "unsafe call",
        "lambda function": "unsafe load",
        "lambda output shape": "unsafe load",
        "mapped function": "unsafe load",
        "argument of an operation": "unsafe load",
        "loss": fit,
        "function of a loss": fit,
        "metric": fit,
        "function of a metric": fit,
        "learning rate": fit,
        "learning rate of a scaled optimizer": fit,
        "optimizer of each variable": _not_h5("unsafe load"),
    }
    for place in PLACES:
        yield from _in_config(
            f"lambda as {place}",
            "Marshalled byte code of the file's author runs.",
            _placed(place, lambda path, marker: _lambda(marker)),
            runs_lambda.get(place, ""),
        )
    yield from _in_config(
        "lambda of Keras 2",
        "Byte code in the list that Keras 2 wrote runs.",
        lambda c, p, m: _insert_layer(
            c,
            {
                "class_name": "Lambda",
                "config": {"function": [_code(m), None, None], "function_type": "lambda"},
            },
        ),
        "unsafe load",
    )
    runs_wrapper = {
        ("SavedModel", "layer"): "unsafe load",
        ("SavedModel", "wrapped layer"): "unsafe load",
        ("SavedModel", "pipeline"): "unsafe load",
        ("SavedModel", "loss"): _not_h5("unsafe load"),
        ("JAX", "layer"): "unsafe load",
    }  # PyTorch and Flax were not there when this was tried
    for name, spec in {"SavedModel": _tfsm, "PyTorch": _torch, "JAX": _jax}.items():
        for place in ("layer", "wrapped layer", "pipeline", "loss"):
            yield from _in_config(
                f"{name} as {place}",
                "Code of another framework, which the file carries or points to, runs.",
                _placed(place, spec),
                runs_wrapper.get((name, place), ""),
            )
    yield from _in_config("Flax as layer", "A method by any name.", _placed("layer", _flax))
    yield from _in_config(
        "SavedModel by its private name",
        "The class is named by the module it is written in.",
        _placed(
            "layer",
            lambda p, m: _tfsm(p, m) | {"module": "keras.src.export.tfsm_layer"},
        ),
        "unsafe load",
    )
    yield from _in_config(
        "class called as a function",
        "Safe mode looks at TFSMLayer.from_config; named as a function, its constructor is "
        "called: the graph of a SavedModel, which may be on a remote disk, runs while loading.",
        _called(_function("keras.layers.TFSMLayer"), _graph_beside),
        "load",
    )
    picture = {"class_name": "__numpy__", "config": {"value": [[[[1]]]], "dtype": "uint8"}}
    draw = [picture, None, None, None, 1, 1, [0, 255], 2, lambda path, marker: str(marker)]
    yield from _in_config(
        "function of Keras that writes",
        "A public function that is not on Keras's list of forbidden ones overwrites any file.",
        _called(_function("keras.visualization.plot_image_gallery"), *draw),
        "load",
    )
    yield from _in_config(
        "function of Keras named as a class",
        "Where a class is expected, the name of a function gives that function.",
        _called(_object("keras.visualization.plot_image_gallery"), *draw),
        "load",
    )
    yield from _in_config(
        "function of Keras that changes settings",
        "The settings of the process that opens the file are changed; Keras does so, in safe mode.",
        _called(_function("keras.config.set_floatx"), "float16"),
    )
    functions = {
        "get_file": "keras.utils.get_file",
        "private get_file": "keras.src.utils.file_utils.get_file",
        "load_model": "keras.saving.load_model",
        "enable_unsafe_deserialization": "keras.config.enable_unsafe_deserialization",
        "load_data": "keras.datasets.mnist.load_data",
        "TFSMLayer": "keras.layers.TFSMLayer",
        "system": "os.system",
        "exec": "builtins.exec",
    }
    for name, function in functions.items():
        for place in ("lambda function", "activation", "loss", "function of a metric"):
            yield from _in_config(
                f"{name} as {place}",
                "A function that opens, fetches or runs things is called with the data.",
                _placed(place, _function(function)),
            )
    for place in ("layer", "activation", "initializer", "wrapped layer", "loss", "learning rate"):
        yield from _in_config(
            f"foreign class as {place}",
            "Any class that can be imported is called with any arguments.",
            _placed(place, lambda p, m: _object("subprocess.Popen", args=["touch", str(m)])),
        )
    yield from _in_config(
        "registered name of something else",
        "A class that the user registered is made in place of the one that is named.",
        lambda c, p, m: _layer(c).update(registered_name="theirs>Layer"),
    )
    yield from _in_config(
        "type of another module",
        "A type specification names any class.",
        _placed(
            "lambda arguments",
            {
                "class_name": "__typespec__",
                "spec_name": "Popen",
                "module": "subprocess",
                "registered_name": None,
                "config": [["touch"]],
            },
        ),
    )
    yield from _in_config(
        "module beside the model",
        "Keras imports any module whose name begins with keras, keras_hub, keras_cv or keras_nlp: "
        "one that lies in the folder that Python was started in runs, in safe mode.",
        _module_beside,
        formats=["directory"],
    )


def _module_beside(config, path, marker):
    (path / "keras_hub.py").write_text(f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n")
    _layer(config).update(module="keras_hub", class_name="Layer")


def _legacy():
    """What only the reader of Keras 2 configurations understands: no `module` beside the name."""

    def function(config, path, marker):
        spec = _tfsm(path, marker)
        config["config"]["layers"][1] = {"class_name": "deserialize", "config": {"config": spec}}

    yield from _in_config(
        "function named as a layer",
        "Any function in keras.layers is called with any arguments.",
        function,
        "unsafe load",
    )

    def passive(config, path, marker):
        spec = {"class_name": "Lambda", "config": {"name": "b", "function": _lambda(marker)}}
        _layer(config)["config"].update(activation=spec | {"__passive_serialization__": True})

    yield from _in_config(
        "passive serialization",
        "Values of a configuration are made before the layer that they are meant for.",
        passive,
        {"h5": "unsafe call"},
    )
    yield from _in_config(
        "function by its bare name",
        "A string that is the name of a function in keras.layers is replaced by that function.",
        lambda c, p, m: _layer(c)["config"].update(activation="deserialize"),
        formats=["h5"],
    )


# Files that are read, memory that is taken


def _secret(path):
    """A file beside the model; what is in it must not come into the model."""
    file = path.parent / f"{path.name}.secret"
    file.write_text(f"{SECRET}\n")
    return file


def _vocabulary(config, path, marker):
    lookup = _object("keras.layers.StringLookup", vocabulary=str(_secret(path)), name="a")
    config["config"]["layers"] = [lookup]
    config["config"].pop("build_input_shape", None)


def _text_vocabulary(config, path, marker):
    options = _TEXT | {"vocabulary": str(_secret(path)), "standardize": None}
    config["config"]["layers"] = [_object("keras.layers.TextVectorization", **options, name="a")]


def _linked_vocabulary(path, marker):
    _write_good(path, "directory", _lookup)
    (vocabulary,) = (path / "assets").rglob("vocabulary.txt")
    vocabulary.unlink()
    vocabulary.symlink_to(_secret(path))


def _linked_file(name):
    def make(path, marker):
        _write_good(path, "directory")
        outside = path.parent / f"{path.name}.outside"
        os.replace(path / name, outside)
        (path / name).symlink_to(outside)

    return make


def _linked_member(path, marker):
    _write_good(path, "keras", _lookup)
    with _members(path) as members:
        (name,) = (name for name in members if name.endswith("vocabulary.txt"))
        del members[name]
    link = zipfile.ZipInfo(name)
    link.create_system = 3  # Unix
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, str(_secret(path)))


def _with_member(name, content=b"x"):
    """A good `.keras` file, with assets, and one more member."""

    def make(path, marker):
        _write_good(path, "keras", _lookup)
        with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            member = name(path, marker) if callable(name) else name
            archive.writestr(member, content(marker) if callable(content) else content)

    return make


def _duplicate(path, marker):
    """The first `config.json` is good; the one that is read, the last, is not."""
    _write_good(path, "keras")
    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read("config.json"))
    _insert_layer(config, _object("keras.layers.Lambda", function=_lambda(marker)))
    with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr("config.json", json.dumps(config))


def _deflated(name, content=b"", megabytes=300):
    """A `.keras` file whose member `name` is followed by much white space, deflated."""

    def make(path, marker):
        _write_good(path, "keras", _lookup)
        with _members(path) as members:
            start = members.pop(name, content)
        archive = zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED, compresslevel=1)
        with archive, archive.open(name, "w") as member:
            member.write(start)
            for _ in range(megabytes):
                member.write(b" " * 2**20)

    return make


def _npz(arrays):
    """A model whose weights are in `model.weights.npz`, the members as `arrays(marker)` gives."""

    def make_for(kind):
        def make(path, marker):
            _write_good(path, kind)
            file = io.BytesIO()
            _write_zip(file, arrays(marker).items())
            if kind == "directory":
                (path / _WEIGHTS).unlink()
                (path / "model.weights.npz").write_bytes(file.getvalue())
                return
            with _members(path) as members:
                del members[_WEIGHTS]
                members["model.weights.npz"] = file.getvalue()

        return make

    return make_for


def _pickled_array(marker):
    file = io.BytesIO()
    np.save(file, np.array([_Pickled(marker)], dtype=object), allow_pickle=True)
    return {"layers/dense/vars.npy": file.getvalue(), "__root__.npy": file.getvalue()}


def _declared_array(marker):
    file = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (2**20, 2**20)}
    np.lib.format.write_array_header_1_0(file, header)
    return {"layers/dense/vars.npy": file.getvalue()}


def _nested_model(config, depth):
    inner = json.loads(json.dumps(config["config"]["layers"]))
    for i in range(depth):
        inner = [_object("keras.Sequential", name=f"n{i}", trainable=True, layers=inner)]
    config["config"]["layers"] = inner


def _raw_config(text):
    """A model whose configuration is the string `text`, which no JSON writer would write."""

    def make_for(kind):
        def make(path, marker):
            _write_good(path, kind)
            if kind == "h5":
                with h5py.File(path, "r+") as file:
                    file.attrs["model_config"] = text
            elif kind == "keras":
                with _members(path) as members:
                    members["config.json"] = text.encode()
            else:
                (path / "config.json").write_text(text)

        return make

    return make_for


def _huge_layer(config, path, marker):
    _layer(config)["config"]["units"] = 10**10
    _layer(config).pop("build_config", None)


def _expression(config, path, marker):
    policy = _object("keras.DTypePolicy", name="float32")
    _layer(config)["config"].update(
        name="a" * 60 + "-",
        dtype=_object(
            "keras.dtype_policies.DTypePolicyMap",
            default_policy=None,
            policy_map={"(a+)+$": policy},
        ),
    )


def _archives_and_sizes():
    def in_formats(name, harm, make_for, formats=FORMATS, **kwargs):
        return (Hostile(name, kind, make_for(kind), harm, **kwargs) for kind in formats)

    def archive(name, harm, make, **kwargs):
        return Hostile(name, "keras", make, harm, **kwargs)

    def directory(name, harm, make, **kwargs):
        return Hostile(name, "directory", make, harm, **kwargs)

    reads = "The content of a file of the machine comes into the model, and goes where it goes."
    unsafe = f"{reads} Keras does so with safe_mode=False."
    yield from _in_config("vocabulary from a file", unsafe, _vocabulary)
    yield from _in_config("vocabulary of text from a file", unsafe, _text_vocabulary)
    followed = f"{reads} Keras follows the link, in safe mode."
    yield directory("vocabulary that is a link", followed, _linked_vocabulary)
    for name in ("config.json", "metadata.json", _WEIGHTS):
        yield directory(f"{name} that is a link", reads, _linked_file(name))

    writes = "A file outside of the folder the archive is unpacked into is written."
    yield archive("member that is a link", writes, _linked_member)
    for name in ("../outside", "assets/../../outside", "assets\\..\\..\\outside"):
        yield archive(f"member {name}", writes, _with_member(name))
    yield archive("absolute member", writes, _with_member(lambda path, marker: str(marker)))
    yield archive(
        "member twice",
        "Who looks at the first is shown another model.",
        _duplicate,
        runs_in_plain_keras="unsafe load",
    )
    pickled = lambda marker: pickle.dumps(_Pickled(marker))  # noqa: E731
    unpickles = "Unpickling runs code; Keras does not unpickle it, but has no use for it either."
    yield archive("pickle as asset", unpickles, _with_member("assets/a.pkl", pickled))
    yield from in_formats(
        "pickle in model.weights.npz",
        "NumPy unpickles arrays of objects, if allowed to.",
        _npz(_pickled_array),
        FORMATS[:2],
    )

    fills = "Memory or disk is filled from a file of a few kilobytes."
    for name in ("config.json", "metadata.json", _WEIGHTS, "assets/a/vocabulary.txt"):
        yield archive(f"{name} deflated", fills, _deflated(name), costly=True)
    yield from in_formats(
        "declared shape in model.weights.npz",
        fills,
        _npz(_declared_array),
        FORMATS[:2],
        costly=True,
    )
    yield from _in_config("huge layer", fills, _huge_layer, costly=True)
    value = {"class_name": "__numpy__", "config": {"value": [""], "dtype": "S8000000000"}}
    yield from _in_config(
        "huge type", fills, _placed("value of an initializer", value), costly=True
    )
    deep = "Nesting uses up the stack, or a time that grows with its square."
    yield from in_formats("nested JSON", deep, _raw_config("[" * 100_000 + "]" * 100_000), FORMATS)
    many = '{"a":' * 100_000 + "1" + "}" * 100_000
    yield from in_formats("nested JSON objects", deep, _raw_config(many))
    yield from _in_config("nested models", deep, lambda c, p, m: _nested_model(c, 300))
    endless = "A regular expression of the file's author is matched with a name of theirs."
    yield from _in_config("expression in a policy", endless, _expression, costly=True)
    number = '{"class_name": "Sequential", "config": ' + "9" * 5000 + "}"
    yield from in_formats("long number", "A number of any length is computed.", _raw_config(number))


# HDF5


def _elsewhere(path):
    file = path.parent / f"{path.name}.elsewhere.h5"
    with h5py.File(file, "w") as opened:
        opened["data"] = np.zeros(3, "float32")
        opened["group/0"] = np.zeros(3, "float32")
    return str(file)


def _replaced(value):
    """An edit of HDF5: the dataset is replaced by `value(parent, path)`, a link or the like."""

    def edit(parent, name, path):
        del parent[name]
        parent[name] = value(parent, path)

    return edit


def _group_replaced(value):
    def edit(parent, name, path):
        whole = parent.parent
        group = parent.name.rpartition("/")[2]
        del whole[group]
        whole[group] = value(whole, path)

    return edit


def _declared(parent, name, path):
    del parent[name]
    parent.create_dataset(name, shape=(2**20, 2**20), dtype="float32", chunks=(1024, 1024))


def _compressed(parent, name, path):
    del parent[name]
    shape, chunks = (2**12, 2**14), (2**12, 2**10)
    parent.create_dataset(name, data=np.zeros(shape, "float32"), chunks=chunks, compression="gzip")


def _external_storage(parent, name, path):
    del parent[name]
    file = _secret(path)
    parent.create_dataset(name, (3,), "float32", external=[(str(file), 0, 12)])


def _virtual(parent, name, path):
    del parent[name]
    layout = h5py.VirtualLayout((3,), "float32")
    layout[:] = h5py.VirtualSource(_elsewhere(path), "data", (3,))
    parent.create_virtual_dataset(name, layout)


def _cycle(parent, name, path):
    parent["again"] = parent.parent


def _objects(parent, name, path):
    del parent[name]
    parent.create_dataset(name, data=["text"] * 3, dtype=h5py.string_dtype())


def _hdf5():
    link = "Another file, or another part of this one, is read in place of the weights."
    soft, external = h5py.SoftLink, h5py.ExternalLink
    yield from _in_weights("soft link", link, _replaced(lambda parent, path: soft("/")))
    yield from _in_weights("broken soft link", link, _replaced(lambda parent, path: soft("/none")))
    yield from _in_weights(
        "external link", link, _replaced(lambda parent, path: external(_elsewhere(path), "data"))
    )
    yield from _in_weights(
        "external link of a group",
        link,
        _group_replaced(lambda parent, path: external(_elsewhere(path), "group")),
    )
    yield from _in_weights("external storage", link, _external_storage)
    yield from _in_weights("virtual dataset", link, _virtual)
    yield from _in_weights("group in itself", "Who walks through it never ends.", _cycle)
    yield from _in_weights("text as weights", "Objects of any length and type.", _objects)
    fills = "Memory is filled from a file of a few kilobytes."
    yield from _in_weights("declared shape", fills, _declared, costly=True)
    yield from _in_weights("compressed zeros", fills, _compressed, costly=True)


# SavedModels


def write_graph(path, marker, when="load"):
    """Writes a SavedModel whose graph creates the marker at loading or when it is called."""
    import tensorflow as tf

    def touch():
        tf.io.write_file(str(marker), "")

    class Resource(tf.saved_model.experimental.TrackableResource):
        def _create_resource(self):
            return tf.raw_ops.VarHandleOp(dtype=tf.float32, shape=[], shared_name="r")

        def _initialize(self):
            if when == "load":
                touch()

    class Module(tf.Module):
        def __init__(self):
            super().__init__()
            self.resource = Resource()

        @tf.function(input_signature=[tf.TensorSpec([None, 4])])
        def serve(self, x):
            if when == "call":
                touch()
            return tf.reduce_sum(x, -1, keepdims=True)

        def __call__(self, x):
            return self.serve(x)

    tf.saved_model.save(Module(), str(path))


def _keras_2(metadata):
    """A SavedModel of Keras 2: a graph that must not be loaded, and `metadata(marker)` of nodes."""

    def make(path, marker):
        write_graph(path, marker)
        from tensorflow.python.keras.protobuf import saved_metadata_pb2

        saved = saved_metadata_pb2.SavedMetadata()
        for i, (identifier, content) in enumerate(metadata(marker)):
            name = "root" if i == 0 else f"root.layer-{i - 1}"
            node = saved.nodes.add(node_id=i, node_path=name, identifier=identifier)
            node.metadata = content if isinstance(content, str) else json.dumps(content)
            node.version.producer = 2
            node.version.min_consumer = 1
        (path / "keras_metadata.pb").write_bytes(saved.SerializeToString())

    return make


def _keras_2_model(*inner, **more):
    """Metadata of a sequential model of these layers."""
    start = {
        "class_name": "InputLayer",
        "config": {
            "batch_input_shape": [None, 4],
            "dtype": "float32",
            "sparse": False,
            "ragged": False,
            "name": "input_1",
        },
    }
    config = {"name": "sequential", "layers": [start, *inner]}
    described = {"class_name": "Sequential", "config": config}
    root = {
        "name": "sequential",
        "trainable": True,
        "dtype": "float32",
        **described,
        "shared_object_id": 0,
        "is_graph_network": True,
        "full_save_spec": None,
        "save_spec": None,
        "keras_version": "2.15.0",
        "backend": "tensorflow",
        "model_config": described,
        **more,
    }
    nodes = [{"name": each["config"].get("name", "a"), **each} for each in inner]
    return [("_tf_keras_sequential", root), *(("_tf_keras_layer", node) for node in nodes)]


def _keras_2_lambda(marker):
    function = {"class_name": "__tuple__", "items": [_code(marker), None, None]}
    config = {"name": "a", "function": function, "function_type": "lambda", "arguments": {}}
    return _keras_2_model({"class_name": "Lambda", "config": config})


def _saved_models():
    dense = {"class_name": "Dense", "config": {"name": "a", "units": 2, "activation": "relu"}}
    foreign = {"class_name": "os>system", "config": {"name": "a", "command": "true"}}
    wrapped = {
        "class_name": "TimeDistributed",
        "config": {"name": "a", "layer": {"class_name": "TFOpLambda", "config": {"name": "t"}}},
    }
    training = {
        "loss": {"class_name": "function", "module": "os", "config": "system"},
        "metrics": None,
        "optimizer_config": _object("subprocess.Popen", args=["true"]),
    }
    contents = {
        "Keras 2 model whose graph writes": lambda marker: _keras_2_model(dense),
        "Keras 2 model with a lambda": _keras_2_lambda,
        "Keras 2 model with a class of another module": lambda marker: _keras_2_model(foreign),
        "Keras 2 model with an operation of TensorFlow": lambda marker: _keras_2_model(wrapped),
        "Keras 2 model with a foreign loss": lambda marker: _keras_2_model(
            dense, training_config=training
        ),
        "Keras 2 model with nested JSON": lambda marker: [
            ("_tf_keras_sequential", "[" * 100_000 + "]" * 100_000)
        ],
    }
    harm = "tf.saved_model.load runs what is in the graph, before anything of it is called"
    for name, metadata in contents.items():
        yield Hostile(name, "saved_model", _keras_2(metadata), f"{harm}.")
    for when in ("load", "call"):
        yield Hostile(
            f"graph that writes at {when}",
            "saved_model",
            lambda path, marker, when=when: write_graph(path, marker, when),
            f"{harm}; no Keras model is in it.",
        )

    def linked(path, marker):
        _keras_2(lambda marker: _keras_2_model(dense))(path, marker)
        outside = path.parent / f"{path.name}.variables"
        os.replace(path / "variables", outside)
        (path / "variables").symlink_to(outside)

    yield Hostile("variables that are a link", "saved_model", linked, "Other files are read.")


CATALOGUE = [
    *_code_in_configurations(),
    *_legacy(),
    *_archives_and_sizes(),
    *_hdf5(),
    *_saved_models(),
]


# Models that nothing is wrong with

# Keras 3.15.1 itself cannot open these again from an .h5 file, with its loss or at all.
NOT_IN_H5 = (
    *("attention", "operations", "reshaped", "operations of arrays"),
    *("schedule", "schedules", "scaled optimizer"),
)


def _model(shape, *parts, dtype="float32", compiled=()):
    """A sequential model; `compiled` are arguments of `compile`."""
    model = keras.Sequential([keras.Input(shape, dtype=dtype), *parts])
    if compiled:
        model.compile(**dict(compiled))
    return model


def _functional(shape, call):
    x = keras.Input(shape)
    return keras.Model(x, call(x))


def _trained(**compiled):
    return lambda: _model((4,), layers.Dense(3, "softmax", name="out"), compiled=compiled)


def _regularized():
    return _model(
        (4,),
        layers.Dense(
            3,
            "gelu",
            kernel_initializer=keras.initializers.VarianceScaling(2.0, "fan_out"),
            bias_initializer=keras.initializers.Constant(0.5),
            kernel_regularizer=keras.regularizers.L1L2(1e-3, 1e-3),
            activity_regularizer="l2",
            kernel_constraint=keras.constraints.MaxNorm(2),
        ),
        layers.Dense(
            4,
            kernel_initializer="orthogonal",
            kernel_regularizer=keras.regularizers.OrthogonalRegularizer(),
            bias_constraint="non_neg",
        ),
    )


def _activations():
    named = ("elu", "selu", "softplus", "swish", "hard_sigmoid", "mish", "leaky_relu", "glu")
    parts = [layers.Dense(4, name) for name in named]
    return _model(
        (4,),
        *parts,
        layers.Dense(4, keras.activations.log_softmax),
        layers.Activation(keras.activations.tanh),
        layers.LeakyReLU(0.3),
        layers.PReLU(),
        layers.Softmax(),
    )


def _shared_layers():
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    shared = layers.Dense(3, name="shared")
    outputs = {"sum": layers.Add()([shared(a), shared(b)]), "cat": layers.Concatenate()([a, b])}
    model = keras.Model({"a": a, "b": b}, outputs)
    model.compile(
        keras.optimizers.RMSprop(),
        {"sum": keras.losses.Huber(), "cat": "mean_absolute_error"},
        loss_weights={"sum": 1.0, "cat": 0.5},
        metrics={"sum": [keras.metrics.MeanSquaredError(), "mean_absolute_error"]},
    )
    return model


def _text():
    vectorization = layers.TextVectorization(5, output_sequence_length=4, vocabulary=["a", "b"])
    return _model((), vectorization, layers.Embedding(5, 2), layers.GRU(2), dtype="string")


def _adapted(layer, data, shape=(1,), dtype="float32"):
    layer.adapt(data)
    return _model(shape, layer, dtype=dtype)


def _quantized():
    model = _model((4,), layers.Dense(4, name="a"), layers.EinsumDense("ab,bc->ac", 3))
    model.quantize("int8")
    return model


def _attention(x):
    a = layers.MultiHeadAttention(2, 4)(x, x, use_causal_mask=True)
    b = layers.GroupQueryAttention(4, 4, 2)(x, x)
    return layers.LayerNormalization()(layers.Attention()([a, b]) + x)


def _schedules(x):
    return keras.optimizers.schedules.CosineDecay(0.1, x, warmup_target=0.2, warmup_steps=3)


def ordinary():
    """Models that must be opened: `{name: function that makes one}`."""
    rnn = layers.StackedRNNCells([layers.LSTMCell(3), layers.GRUCell(2), layers.SimpleRNNCell(2)])
    sparse = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    focal = keras.losses.CategoricalFocalCrossentropy(label_smoothing=0.1)
    metrics = [
        keras.metrics.SparseTopKCategoricalAccuracy(2),
        keras.metrics.MeanMetricWrapper(keras.losses.mean_squared_error, name="wrapped"),
        "accuracy",
    ]
    string = {"shape": (1,), "dtype": "string"}
    return {
        "dense": _dense,
        "regularized": _regularized,
        "activations": _activations,
        "convolutions": lambda: _model(
            (8, 8, 3),
            layers.Conv2D(4, 3, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(6.0),
            layers.DepthwiseConv2D(3),
            layers.SeparableConv2D(4, 3),
            layers.Conv2DTranspose(4, 2),
            layers.MaxPooling2D(),
            layers.GroupNormalization(2),
            layers.SpatialDropout2D(0.1, seed=3),
            layers.GlobalAveragePooling2D(),
        ),
        "convolutions in 1d": lambda: _model(
            (16, 3),
            layers.Conv1D(4, 3, dilation_rate=2),
            layers.AveragePooling1D(2),
            layers.Flatten(),
        ),
        "convolutions in 3d": lambda: _model(
            (4, 4, 4, 1), layers.Conv3D(2, 2), layers.UpSampling3D(2), layers.GlobalMaxPooling3D()
        ),
        "shapes": lambda: _model(
            (6,),
            layers.Reshape((2, 3)),
            layers.Permute((2, 1)),
            layers.ZeroPadding1D(1),
            layers.Cropping1D(1),
            layers.Flatten(),
            layers.RepeatVector(2),
        ),
        "recurrent": lambda: _model((5, 3), layers.LSTM(4, return_sequences=True), layers.GRU(3)),
        "cells": lambda: _model((5, 3), layers.RNN(rnn)),
        "bidirectional": lambda: _model(
            (5, 3),
            layers.Masking(0.0),
            layers.Bidirectional(
                layers.LSTM(2), backward_layer=layers.GRU(2, go_backwards=True), name="both"
            ),
        ),
        "recurrent convolutions": lambda: _model((3, 6, 6, 1), layers.ConvLSTM2D(2, 3)),
        "time distributed": lambda: _model((5, 3), layers.TimeDistributed(layers.Dense(2, "relu"))),
        "spectral normalization": lambda: _model(
            (4,), layers.SpectralNormalization(layers.Dense(3), power_iterations=2)
        ),
        "attention": lambda: _functional((6, 8), _attention),
        "einsum": lambda: _model(
            (5, 4), layers.EinsumDense("abc,cd->abd", (None, 3), bias_axes="d")
        ),
        "low rank": lambda: _model((4,), layers.Dense(3, lora_rank=2)),
        "operations": lambda: _functional((4,), lambda x: ops.relu(x) * 2 + x),
        "reshaped": lambda: _functional((6,), lambda x: ops.reshape(x, (-1, 2, 3))[:, 0] / 3.0),
        "operations of arrays": lambda: _functional(
            (4,), lambda x: ops.concatenate([ops.mean(x, -1, keepdims=True), ops.exp(-x)], axis=-1)
        ),
        "shared layers": _shared_layers,
        "nested": lambda: _model((4,), _dense(), layers.Dense(2)),
        "noise": lambda: _model(
            (4,), layers.GaussianNoise(0.1, seed=1), layers.Dropout(0.2), layers.AlphaDropout(0.1)
        ),
        "mixed precision": lambda: _model((4,), layers.Dense(3, dtype="mixed_bfloat16")),
        "policies": lambda: _model(
            (4,), layers.Dense(3, dtype=keras.DTypePolicy("mixed_float16")), layers.Dense(2)
        ),
        "quantized": _quantized,
        "augmentation": lambda: _model(
            (8, 8, 3),
            layers.Rescaling(1 / 255),
            layers.RandomFlip("horizontal"),
            layers.RandomRotation(0.1),
            layers.RandomContrast(0.2),
            layers.Resizing(4, 4),
            layers.CenterCrop(2, 2),
        ),
        "pipeline": lambda: _model(
            (8, 8, 3), layers.Pipeline([layers.RandomZoom(0.1), layers.RandomTranslation(0.1, 0.1)])
        ),
        "strings": lambda: _model(
            (1,),
            layers.StringLookup(vocabulary=["a", "b"], output_mode="multi_hot"),
            dtype="string",
        ),
        "adapted strings": lambda: _adapted(layers.StringLookup(), np.array(["a", "b"]), **string),
        "integers": lambda: _model(
            (1,), layers.IntegerLookup(vocabulary=[3, 5]), layers.Embedding(4, 2), dtype="int64"
        ),
        "text": _text,
        "hashing": lambda: _model((1,), layers.Hashing(5), dtype="string"),
        "categories": lambda: _model(
            (2,), layers.CategoryEncoding(4, output_mode="count"), dtype="int64"
        ),
        "discretization": lambda: _model((1,), layers.Discretization([0.0, 1.0])),
        "adapted discretization": lambda: _adapted(
            layers.Discretization(num_bins=3), np.arange(9.0)
        ),
        "normalization": lambda: _adapted(layers.Normalization(), np.arange(9.0)[:, None]),
        "sound": lambda: _model((2048,), layers.MelSpectrogram(fft_length=256, num_mel_bins=8)),
        "loss object": _trained(optimizer="sgd", loss=sparse, metrics=metrics),
        "loss with options": _trained(
            optimizer="adam", loss=focal, weighted_metrics=[keras.metrics.AUC()]
        ),
        "loss by name": _trained(optimizer="nadam", loss="kl_divergence", metrics=["mse", "mae"]),
        "schedule": _trained(optimizer=keras.optimizers.AdamW(_schedules(9)), loss="mse"),
        "schedules": _trained(
            optimizer=keras.optimizers.SGD(
                keras.optimizers.schedules.PiecewiseConstantDecay([3, 5], [0.1, 0.01, 0.001]),
                momentum=0.9,
                nesterov=True,
            ),
            loss="mae",
        ),
        "scaled optimizer": _trained(
            optimizer=keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()), loss="mse"
        ),
        "mixed optimizer": _trained(
            optimizer=keras.optimizers.Lion(1e-4, clipnorm=1.0, use_ema=True), loss=sparse
        ),
    }
