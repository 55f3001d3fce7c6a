"""Attributes of layers replaced while somebody watches what they do.

Whoever comes first replaces an attribute, for everybody, and whoever goes last puts it back: in
whatever order threads come and go, a model is left as it was. What stands there meanwhile asks the
thread that calls it who is watching, so that nobody sees what others do.
"""

import contextlib
import functools
import threading
import weakref

from keras import tree

# Keras keeps masks beside tensors and exports no reader for them.
from keras.src.backend.common.masking import get_keras_mask, set_keras_mask

_CASTS = "_convert_input_args"
_lock = threading.Lock()
# (id of a target, name) -> how many watch, the target, what stood there.
_replaced: dict[tuple[int, str], list] = {}
_watchers = threading.local()
_NOTHING = object()
# Layer -> held while somebody is alone with it.
_locks: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def alone_with(model):
    """Inside the block no other thread is in one with this model, or with any of its layers.

    The same thread may be in several.
    """
    with _lock:
        locks = [_locks.setdefault(layer, threading.RLock()) for layer in model._flatten_layers()]
    with contextlib.ExitStack() as held:
        # In one order everywhere, so that nobody waits in a ring.
        for lock in sorted(locks, key=id):
            held.enter_context(lock)
        yield


@contextlib.contextmanager
def watched(calls, uncast=()):
    """Inside the block the calling thread's calls of some attributes go through others first.

    Args:
        calls: list of (target, name, watcher): `watcher(original, ...)` is called in place of
            `target.name(...)`; of several the last is asked first.
        uncast: layers whose watchers get tensors as they were before the layer casts them to its
            own dtype.

    Example:

    >>> import keras
    >>> layer = keras.layers.ReLU()
    >>> with watched([(layer, "call", lambda original, x: 10 * original(x))]):
    ...     float(layer(keras.ops.ones(())))
    10.0
    >>> float(layer(keras.ops.ones(())))
    1.0
    """
    mine = {}
    for target, name, watcher in calls:
        mine.setdefault((id(target), name), []).append(watcher)
    stack = _stack()
    with contextlib.ExitStack() as replaced:
        for layer in uncast:
            replaced.enter_context(_replaced_while(layer, _CASTS, lambda *_: False))
        for target, name, _ in calls:
            replaced.enter_context(_replaced_while(target, name, _asking))
        stack.append(mine)
        try:
            yield
        finally:
            stack.pop()


def standing(target, name):
    """What an attribute is for those who do not watch it."""
    value = getattr(target, name, None)
    return value.__wrapped__ if (id(target), name) in _replaced else value


def _stack():
    if not hasattr(_watchers, "stack"):
        _watchers.stack = []
    return _watchers.stack


def _asking(target, name, original):
    """What stands in an attribute's place."""

    @functools.wraps(original, updated=())  # a layer may be an activation function
    def call(*args, **kwargs):
        run = original
        if name.endswith("call") and (id(target), _CASTS) in _replaced:
            run = functools.partial(_cast_first, target, original)
        for mine in _stack():
            for watcher in mine.get((id(target), name), ()):
                run = functools.partial(watcher, run)
        return run(*args, **kwargs)

    return call


def _cast_first(layer, original, *args, **kwargs):
    """What `Layer.__call__` does with its arguments first."""

    def cast(x):
        converted = layer.dtype_policy.convert_input(x, layer.autocast, layer.input_dtype)
        mask = get_keras_mask(x)
        if mask is not None:
            set_keras_mask(converted, mask)
        return converted

    args, kwargs = tree.map_structure(cast, (args, kwargs))
    return original(*args, **kwargs)


@contextlib.contextmanager
def _replaced_while(target, name, make):
    key, attributes = (id(target), name), vars(target)  # past Keras's tracking
    with _lock:
        if key not in _replaced:
            original = getattr(target, name)
            _replaced[key] = [0, target, attributes.get(name, _NOTHING)]
            attributes[name] = make(target, name, original)
        _replaced[key][0] += 1
    try:
        yield
    finally:
        with _lock:
            _replaced[key][0] -= 1
            if not _replaced[key][0]:
                *_, before = _replaced.pop(key)
                if before is _NOTHING:
                    del attributes[name]
                else:
                    attributes[name] = before


@contextlib.contextmanager
def replaced_attributes(target, values):
    """Sets instance attributes for a while, past Keras's tracking; puts back what was there."""
    before = {name: vars(target)[name] for name in values if name in vars(target)}
    vars(target).update(values)
    try:
        yield
    finally:
        for name in values:
            if name in before:
                vars(target)[name] = before[name]
            else:
                del vars(target)[name]
