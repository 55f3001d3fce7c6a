"""Every question to the backend that Keras runs on."""

import concurrent.futures
import contextlib
import importlib
import logging
from typing import Any

import keras
from keras import ops

# A tensor of any backend, or an array, which does as well: no type that all of them share.
Tensor = Any
# Data as `evaluate` takes them: `(x, y)` arrays, a `tf.data.Dataset`, a `PyDataset`, a generator.
Data = Any

_READERS = {
    "tensorflow": "get_tf_dataset",
    "jax": "get_jax_iterator",
    "torch": "get_torch_dataloader",
}


def name():
    """`"tensorflow"`, `"jax"` or `"torch"`."""
    return keras.backend.backend()


def version():
    """The version of the backend itself, not of its package, which has other names too."""
    return importlib.import_module(name()).__version__


def records_inside_fit():
    """Whether the steps of `fit` can be watched from inside.

    Not on JAX: its steps are pure functions of the variables that Keras lists before the training.
    """
    return name() in ("tensorflow", "torch")


def steps_are_traced():
    """Whether a step of `fit` is made once, a graph, and not looked up anew for each batch."""
    return name() != "torch"


def at_least_float32(x):
    """`x` as a floating tensor of 32 bits or more (half precision and integers are widened)."""
    x = ops.convert_to_tensor(x)
    wide = keras.backend.standardize_dtype(x.dtype) in ("float32", "float64")
    return x if wide else ops.cast(x, "float32")


def rows_of(variable, rows):
    """Some rows of a Keras variable, without a copy of the others."""
    value = variable.value
    return value.sparse_read(rows) if _in_place(value) else ops.take(value, rows, axis=0)


def set_rows(variable, rows, values):
    """Sets some rows, in place where the backend can; of one that is named twice any of both."""
    value = variable.value
    if _in_place(value):
        value.scatter_update(_slices(values, rows))
    else:
        variable.assign(ops.scatter_update(value, rows[:, None], values))


def add_rows(variable, rows, values):
    """Adds to some rows, to the same one more than once as well; in place where it can."""
    value = variable.value
    if _in_place(value):
        value.scatter_add(_slices(values, rows))
    elif name() == "jax":
        variable.assign(value.at[rows].add(values))
    else:
        variable.assign(value + ops.scatter(rows[:, None], values, variable.shape))


def _in_place(value):
    """Whether it is a variable of TensorFlow on one device, and no tensor."""
    return hasattr(value, "sparse_read") and strategy(value) is None


def _slices(values, rows):
    import tensorflow as tf

    return tf.IndexedSlices(values, rows)


def is_traced(tensor):
    """Whether a tensor has no value: it stands in a graph that is being made."""
    if name() == "jax":
        import jax

        return isinstance(tensor, keras.KerasTensor | jax.core.Tracer)
    return isinstance(tensor, keras.KerasTensor) or graph_of(tensor) is not None


def on_processor():
    """Whether tensors lie in the memory of the processor, where NumPy has them without a copy."""
    # TensorFlow and JAX say a device as text, or as an object that has one.
    return "cpu" in str(ops.convert_to_tensor(0.0).device).lower()


def compiled(function):
    """A function of a tensor and a number, compiled by XLA for each number; as it is on PyTorch."""
    if name() == "tensorflow":
        import tensorflow as tf

        return tf.function(function, jit_compile=True, autograph=False)
    if name() == "jax":
        import jax

        return jax.jit(function, static_argnums=1)
    return function


def traced(function):
    """A function of tensors as a graph on TensorFlow, made when it is called; else as it is.

    Where it does things that no graph does it goes on as it is, too.
    """
    if name() != "tensorflow":
        return function
    import tensorflow as tf

    graph = tf.function(function, autograph=False)

    def made(*args):
        nonlocal graph
        if graph is not function:
            try:
                return graph(*args)
            except Exception:  # noqa: BLE001 - what is wrong otherwise, the function says itself
                graph = function
        return function(*args)

    return made


def without_gradients():
    """Inside the block nothing is kept for gradients; a context manager."""
    if name() != "torch":
        return contextlib.nullcontext()
    import torch

    return torch.no_grad()


@contextlib.contextmanager
def many_models():
    """Inside the block TensorFlow does not say that functions are traced again: each is of another
    model."""
    log = logging.getLogger("tensorflow")
    log.addFilter(_no_retracing)
    try:
        yield
    finally:
        log.removeFilter(_no_retracing)


def _no_retracing(record):
    return "triggered tf.function retracing" not in str(record.msg)


def own_draws():
    """Inside the block random numbers are drawn that nobody else misses; a context manager.

    PyTorch's loaders draw one for each pass, also where nothing is shuffled.
    """
    if name() != "torch":
        return contextlib.nullcontext()
    import torch

    return torch.random.fork_rng()


def graph_of(tensor):
    """The TensorFlow graph of a symbolic tensor; None for any other tensor."""
    try:
        return tensor.graph
    except AttributeError:
        return None


def batches_of(adapter):
    """The batches of a data adapter of Keras, as the backend's own trainer is given them."""
    return getattr(adapter, _READERS.get(name(), "get_numpy_iterator"))()


def as_in_a_step(value):
    """A tensor of a TensorFlow data set as a step of the first replica is given it."""
    if name() != "tensorflow":
        return value
    import tensorflow as tf

    if isinstance(value, tf.experimental.Optional):  # what a generator's None becomes
        return None
    return value.values[0] if isinstance(value, tf.distribute.DistributedValues) else value


def is_torch_module(value):
    """Whether it is a module of PyTorch that is no layer of Keras."""
    if name() != "torch":
        return False
    import torch

    return isinstance(value, torch.nn.Module) and not isinstance(value, keras.Layer)


def attributes(layer):
    """What was set on a layer, by name; PyTorch keeps the layers among it apart."""
    modules = dict(vars(layer).get("_modules", {}))
    modules.pop("_torch_params", None)  # a list of the variables, which Keras makes itself
    return vars(layer) | modules


def strategy(model):
    """The TensorFlow strategy that a model, or a variable, is distributed by, or None."""
    return getattr(model, "_distribute_strategy", None)


def strategy_scope(model):
    """The scope of that strategy, a context manager."""
    return contextlib.nullcontext() if strategy(model) is None else strategy(model).scope()


def mirrored():
    """The scope in which a model is made for all accelerators of this machine, or all CPUs.

    On JAX every model made from then on is for them.

    Raises ValueError on PyTorch, on which Keras has none.
    """
    if name() == "tensorflow":
        import tensorflow as tf

        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return tf.distribute.MirroredStrategy([device.name for device in devices]).scope()
    if name() == "jax":
        keras.distribution.set_distribution(keras.distribution.DataParallel())
        return contextlib.nullcontext()
    raise ValueError(f"{name()} runs on one device only: Keras has no strategy for it.")


def of_all_replicas(tensor):
    """The tensors `[batch, ...]` of all replicas, one after the other."""
    if name() != "tensorflow":
        return tensor
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    alone = context is None or context.num_replicas_in_sync == 1
    return tensor if alone else context.all_gather(tf.convert_to_tensor(tensor), axis=0)


def across_replicas(build):
    """Calls `build`, which makes variables inside of a step, where a distribution strategy allows
    it.
    """
    if name() != "tensorflow":
        build()
        return
    import tensorflow as tf

    replica = tf.distribute.get_replica_context()
    if not tf.distribute.has_strategy() or replica is None:
        # A tf.function that is seen making variables is traced twice: in a thread it is not.
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            thread.submit(build).result()
        return

    def merged(strategy):
        with tf.init_scope(), strategy.scope():
            build()

    replica.merge_call(merged)


def either(condition, do, otherwise):
    """Does one or the other in a step, as a tensor says if the condition is one."""
    if name() != "tensorflow":
        (do if condition else otherwise)()
        return
    import tensorflow as tf

    if isinstance(condition, bool) or tf.distribute.has_strategy():  # which has no branches
        do()
        return

    def branch(function):
        function()
        return tf.zeros(())

    tf.cond(condition, lambda: branch(do), lambda: branch(otherwise))


def is_quick_untraced(model):
    """Whether a few batches are looked at one operation after the other, before a step is traced.

    A graph of TensorFlow takes longer to make than to run a few times. Replicas need one; JAX would
    compile each operation for itself.
    """
    return name() == "tensorflow" and strategy(model) is None


def gains_from_jit(model):
    """Whether XLA makes the model faster where Keras leaves it off.

    That is on CPUs, for matrix products with element-wise functions between them; convolutions
    and recurrent layers run slower.
    """
    if name() != "tensorflow" or model.run_eagerly or strategy(model):
        return False
    slower = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D, keras.layers.RNN)
    slower += (keras.layers.SeparableConv2D, keras.layers.DepthwiseConv2D)
    return all(
        layer.supports_jit and not isinstance(layer, slower) for layer in model._flatten_layers()
    )
