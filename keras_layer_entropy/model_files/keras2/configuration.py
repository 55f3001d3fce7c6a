"""The configuration of a Keras 2 model in the words of Keras 3: dicts in, dicts out.

Nothing is made or called here. What Keras 3 has no word for is refused with the name of its class,
and so is an option that it would have to leave out and that was not at its default.
"""

import inspect

import keras
import numpy as np

MODELS = ("Functional", "Sequential", "Model")
_NAMESPACES = {
    "initializer": keras.initializers,
    "regularizer": keras.regularizers,
    "constraint": keras.constraints,
    "activation": keras.layers,
    "learning_rate": keras.optimizers.schedules,
}
_LAYERS = ("layer", "backward_layer", "cell")

# Another name for the same option, or the same layer.
_RENAMED = {
    "InputLayer": {"batch_input_shape": "batch_shape"},
    "LeakyReLU": {"alpha": "negative_slope"},
    "ThresholdedReLU": {"theta": "threshold"},
    "IntegerLookup": {"oov_value": "oov_token"},
}
_REPLACED = {"ThresholdedReLU": "ReLU"}

# Options that Keras 3 does not have, with the values that change nothing when they are left out.
_ANY = object()
_LEFT_OUT = {
    "batch_input_shape": _ANY,  # the shapes come from the graph
    "input_length": _ANY,
    "query_shape": _ANY,
    "key_shape": _ANY,
    "value_shape": _ANY,
    "trainable": _ANY,  # of layers without weights
    "implementation": _ANY,  # how, not what
    "fused": _ANY,
    "jit_compile": _ANY,
    "is_legacy_optimizer": _ANY,
    "vocabulary_size": _ANY,
    "has_input_vocabulary": _ANY,
    "num_bins": (None,),
    "rng_type": _ANY,
    "groups": (1,),
    "noise_shape": (None,),
    "softmax_robust_masking": (False,),
    "ragged": (False,),
    "dynamic": (False,),
    "stateful": (False,),
    "time_major": (False,),
    "renorm": (False,),
    "renorm_clipping": (None, {}),
    "renorm_momentum": (0.99,),
    "virtual_batch_size": (None,),
    "synchronized": (False,),
    "adjustment": (None,),
    "kernel_regularizer": (None,),
    "kernel_constraint": (None,),
    "decay": (0, None),
    "fn": _ANY,  # a loss's own function
}

# Names that stand for another function in Keras 3.
_OTHER_MEANING = {
    "hard_sigmoid": "clip(0.2 x + 0.5, 0, 1) in Keras 2, relu6(x + 3) / 6 in Keras 3",
    "RandomCrop": "a central crop in Keras 2 and nothing in Keras 3, once trained",
}

# They have the options of a kernel, but no kernel.
_UNUSED_KERNELS = ("SeparableConv1D", "SeparableConv2D", "DepthwiseConv1D", "DepthwiseConv2D")

_RECURRENT = ("LSTM", "GRU", "SimpleRNN", "RNN", "Bidirectional", "ConvLSTM1D", "ConvLSTM2D",
              "ConvLSTM3D")  # fmt: skip


def layer(config):
    """A layer or a model.

    Args:
        config: `{"class_name": ..., "config": {...}}` as Keras 2 wrote it.

    Returns:
        Dict for `keras.saving.deserialize_keras_object`.

    Raises:
        ValueError: Keras 3 has no such class or option.

    Example:

    >>> relu = layer({"class_name": "LeakyReLU", "config": {"name": "a", "alpha": 0.2}})
    >>> relu["config"]
    {'name': 'a', 'negative_slope': 0.2}
    """
    name, options = config["class_name"], dict(config.get("config") or {})
    if name == "Sequential":
        return _sequential(options)
    if name in MODELS:
        return _functional(options)
    if keras.saving.get_registered_object(name) is not None:
        return {"module": None, "class_name": name, "config": options, "registered_name": name}
    if name in _OTHER_MEANING:
        raise ValueError(f"{_named(name, options)} is {_OTHER_MEANING[name]}.")
    renamed = _RENAMED.get(name, {})
    options = {renamed.get(key, key): value for key, value in options.items()}
    cls = getattr(keras.layers, _REPLACED.get(name, name), None)
    if not isinstance(cls, type) or name in ("Lambda", "TFSMLayer"):
        raise ValueError(
            f"{_named(name, options)} cannot be rebuilt: Keras 3 has no such layer that may come "
            "from a file. Classes of your own have to be given as custom objects."
        )
    if name == "BatchNormalization" and isinstance(options.get("axis"), list):
        (options["axis"],) = options["axis"]
    if name == "Normalization" and options.get("mean") is not None:
        both = np.broadcast_arrays(options["mean"], options["variance"])
        options["mean"], options["variance"] = (values.tolist() for values in both)
    if name == "Discretization":
        options.pop("dtype", None)  # Keras 3 would cast the inputs to that of the outputs
    if name in _UNUSED_KERNELS:
        options = {key: value for key, value in options.items() if not key.startswith("kernel_i")}
    return made_by(cls, "keras.layers", options)


def with_modules(value):
    """A configuration of Keras 3 as `.h5` files hold it, with the modules of its classes.

    Example:

    >>> with_modules({"class_name": "Dense", "config": {"units": 2}})["module"]
    'keras.layers'
    """
    if isinstance(value, list):
        return [with_modules(item) for item in value]
    if not isinstance(value, dict):
        return value
    made = {key: with_modules(item) for key, item in value.items()}
    if "class_name" not in made or "config" not in made or "module" in made:
        return made
    name = made["class_name"]
    if name in ("Functional", "Sequential"):
        module = "keras.src.models." + name.lower()
    elif isinstance(getattr(keras.layers, name, None), type):
        module = "keras.layers"
    else:
        return made
    return {"registered_name": None} | made | {"module": module}


def made_by(cls, module, options):
    """The options of an object of `cls`, each in the words of Keras 3."""
    accepted = _accepted(cls)
    kept = {}
    for key, value in options.items():
        value = value_of(key, value)
        if key == "name":
            if value is not None:
                kept[key] = name_of(value)
        elif key in accepted:
            kept[key] = value
        elif _LEFT_OUT.get(key, ()) is not _ANY and value not in _LEFT_OUT.get(key, ()):
            raise ValueError(
                f"{_named(cls.__name__, options)} has the option {key}={value!r}, which Keras 3 "
                "does not have: without it the model would compute something else."
            )
    return {"module": module, "class_name": cls.__name__, "config": kept, "registered_name": None}


def name_of(name):
    """The name of a layer: Keras 3 allows no slash."""
    return name.replace("/", "_")


def value_of(key, value):
    """The value of an option called `key`."""
    kind = key.rpartition("_")[2] if key != "learning_rate" else key
    if kind == "activation" and isinstance(value, str):
        _check_activation(value)
    if isinstance(value, list):
        return [value_of(key.removesuffix("s"), item) for item in value]
    if not isinstance(value, dict) or "class_name" not in value:
        return value
    name, config = value["class_name"], value.get("config")
    if name in ("__tuple__", "TensorShape"):
        return [value_of(key, item) for item in value["items"]]
    if name in ("Policy", "PolicyV1", "DTypePolicy"):
        return config["name"]
    if name == "function":
        return value_of(key, config)
    if key in _LAYERS:
        return layer(value)
    cls = getattr(_NAMESPACES.get(kind), name, None)
    if not isinstance(cls, type):
        raise ValueError(f"The option {key} is a {name!r}, which Keras 3 does not know there.")
    if kind == "activation":
        return layer(value)
    return made_by(cls, _NAMESPACES[kind].__name__, dict(config))


def _check_activation(name):
    if name in _OTHER_MEANING:
        raise ValueError(f"The activation {name!r} is {_OTHER_MEANING[name]}.")
    known = callable(getattr(keras.activations, name, None))
    if not known and keras.saving.get_registered_object(name) is None:
        raise ValueError(
            f"The activation {name!r} is not one of Keras's. Functions of your own have to be "
            "given as custom objects."
        )


def _accepted(cls):
    """Names of everything that `cls(...)` takes, its bases' too where it hands them on."""
    names = set()
    for base in cls.__mro__:
        if base is object:
            break
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(base.__init__).parameters.values()
        names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return names - {"self"}


def _named(class_name, options):
    return f"Layer {options['name']!r} ({class_name})" if "name" in options else class_name


def _sequential(options):
    layers = options["layers"]
    first = layers[0]
    shape = first["config"].get("batch_input_shape") or options.get("build_input_shape")
    made = [layer(config) for config in layers]
    if first["class_name"] != "InputLayer" and shape is not None:
        made.insert(0, _input(value_of("shape", shape)))
    return {
        "module": "keras",
        "class_name": "Sequential",
        "config": {"name": name_of(options["name"]), "layers": made},
        "registered_name": None,
    }


def _input(shape):
    return {
        "module": "keras.layers",
        "class_name": "InputLayer",
        "config": {"batch_shape": shape, "dtype": "float32"},
        "registered_name": None,
    }


def _functional(options):
    kinds = {each["name"]: each["class_name"] for each in options["layers"]}
    layers = []
    for each in options["layers"]:
        made = layer(each)
        nodes = [_node(node, each["class_name"], kinds) for node in each["inbound_nodes"]]
        layers.append(made | {"name": name_of(each["name"]), "inbound_nodes": nodes})
    config = {"name": name_of(options["name"]), "trainable": options.get("trainable", True)}
    config["layers"] = layers
    for key in ("input_layers", "output_layers"):
        config[key] = _ends(options[key], kinds)
    return {
        "module": "keras.src.models.functional",
        "class_name": "Functional",
        "config": config,
        "registered_name": "Functional",
    }


def _ends(tensors, kinds):
    """Where a model begins or ends: one `[layer, node, tensor]`, or a list or dict of them."""
    if isinstance(tensors, dict):
        return {key: _ends(value, kinds) for key, value in tensors.items()}
    if isinstance(tensors[0], str):
        name, node, index = tensors
        # In a nested Sequential the first call is node 1 in Keras 2; of a nested functional model
        # Keras 3 says the same.
        return [name_of(name), node - (kinds[name] == "Sequential"), index]
    tensors = [_ends(tensor, kinds) for tensor in tensors]
    return tensors[0] if len(tensors) == 1 else tensors


def _node(node, class_name, kinds):
    """One call of a layer: `{"args": [...], "kwargs": {...}}`."""
    if isinstance(node, dict):
        inputs = {key: _tensor(value, kinds) for key, value in node.items()}
        return {"args": [inputs], "kwargs": {}}
    if node and isinstance(node[0], str):
        node = [node]
    inputs = [_tensor(entry, kinds) for entry in node]
    given = node[0][3] if node and len(node[0]) > 3 else {}
    arguments = {k: _argument(v, kinds) for k, v in given.items() if v is not None}
    if arguments.pop("training", False):
        raise ValueError(
            f"A {class_name} is called with training=True, which Keras 3 does not keep: the model "
            "would compute something else."
        )
    if class_name in _RECURRENT and len(inputs) > 1:
        first, *states = inputs
        return {"args": [first], "kwargs": arguments | {"initial_state": states}}
    return {"args": inputs if len(inputs) == 1 else [inputs], "kwargs": arguments}


def _argument(value, kinds):
    if isinstance(value, list):
        if len(value) == 3 and isinstance(value[0], str) and value[0] in kinds:
            return _tensor(value, kinds)
        return [_argument(item, kinds) for item in value]
    if isinstance(value, dict):
        raise ValueError(f"A layer is called with {value}, which cannot be rebuilt.")
    return value


def _tensor(entry, kinds):
    name, node, index = entry[:3]
    if name not in kinds:
        raise ValueError(f"A layer is called with {name!r}, which is no output of a layer.")
    history = [name_of(name), node - (kinds[name] in MODELS), index]
    # The graph tells shape and dtype.
    config = {"shape": [], "dtype": "float32", "keras_history": history}
    return {"class_name": "__keras_tensor__", "config": config}
