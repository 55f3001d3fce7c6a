"""Heads of attention, states of recurrent layers and steps: thinned as if they were zero."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers

from keras_layer_entropy import load_model, save_model
from keras_layer_entropy.pruning.channels import find_channels
from keras_layer_entropy.pruning.units import remove_units


def quietly(model, units, *data, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return remove_units(model, units, *data, **options)


def array(tensor):
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def value(model, name, x):
    return array(keras.Model(model.inputs, model.get_layer(name).output)(x)).astype(np.float64)


def zero(variable, axis, places):
    """Sets entries of a variable to zero."""
    found = array(variable).copy()
    found[(slice(None),) * axis + (places,)] = 0.0
    variable.assign(found)


def best_fit(rows, target):
    rows = np.hstack([rows, np.ones((len(rows), 1))])
    return rows @ np.linalg.lstsq(rows, target, rcond=None)[0]


def attention(layer, width=7, **options):
    """A query and a value of their own, each made by a layer."""

    def build():
        inputs = keras.Input((5, 4))
        query = layers.Dense(6, name="q")(inputs)
        memory = layers.Dense(width, name="v")(inputs)
        x = layer(name="att")(query, memory, **options)
        x = x[0] if isinstance(x, tuple | list) else x
        return keras.Model(inputs, layers.Dense(3, name="out")(x))

    return build


def multi_head(**options):
    return lambda name: layers.MultiHeadAttention(4, 3, name=name, **options)


def grouped_query(name):
    return layers.GroupQueryAttention(3, 8, 4, name=name)


def without_heads(each):
    def change(model, gone):
        places = (np.array(gone)[:, None] * each + np.arange(each)).ravel()
        zero(model.get_layer("att")._output_dense.kernel, 0, places)

    return change


def without_outputs(model, gone):
    zero(model.get_layer("out").kernel, 0, gone)


def without_queries(model, gone):
    zero(model.get_layer("att")._query_dense.kernel, 0, gone)


def without_values(model, gone):
    for dense in (model.get_layer("att")._key_dense, model.get_layer("att")._value_dense):
        zero(dense.kernel, 0, gone)


def residual_attention():
    inputs = keras.Input((5, 4))
    x = layers.Dense(6, name="stream")(inputs)
    x = layers.Add()([x, layers.MultiHeadAttention(2, 3, name="att")(x, x)])
    return keras.Model(inputs, layers.Dense(3, name="out")(x))


def without_stream(model, gone):
    inner = model.get_layer("att")
    for dense in (inner._query_dense, inner._key_dense, inner._value_dense):
        zero(dense.kernel, 0, gone)
    zero(model.get_layer("out").kernel, 0, gone)


ATTENTION = {
    "heads": (attention(multi_head()), "att", [1, 2], without_heads(1)),
    "heads_of_another_width": (
        attention(multi_head(value_dim=5, output_shape=7, use_bias=False)), "att", [0],
        without_heads(1)),
    "gated": (attention(multi_head(use_gate=True)), "att", [0, 3], without_heads(1)),
    "causal": (attention(multi_head(dropout=0.5), use_causal_mask=True), "att", [2],
               without_heads(1)),
    "scores": (attention(multi_head(), return_attention_scores=True), "att", [2], without_heads(1)),
    "groups": (attention(grouped_query, 6), "att", [1, 2], without_heads(2)),
    "outputs": (attention(multi_head()), "att/attention_output", [0, 5], without_outputs),
    "said_outputs": (attention(multi_head(output_shape=7)), "att/attention_output", [6],
                     without_outputs),
    "queries": (attention(multi_head()), "q", [0, 5], without_queries),
    "values": (attention(multi_head()), "v", [0, 5], without_values),
    "stream": (residual_attention, "stream", [0, 5], without_stream),
}  # fmt: skip


def recurrent(kind, sequences=False, **options):
    """One recurrent layer, which takes thinned units or makes them."""

    def build():
        inputs = keras.Input((5, 4))
        x = layers.Dense(6, name="before")(inputs)
        x = kind(5, name="rnn", return_sequences=sequences, **options)(x)
        return keras.Model(inputs, layers.Dense(3, name="out")(x))

    return build


def both_ways(kind, mode, sequences=False):
    def build():
        inputs = keras.Input((5, 4))
        x = layers.Dense(6, name="before")(inputs)
        inner = kind(5, return_sequences=sequences)
        x = layers.Bidirectional(inner, merge_mode=mode, name="rnn")(x)
        if mode is None:
            x = layers.Concatenate()(x)
        return keras.Model(inputs, layers.Dense(3, name="out")(x))

    return build


def without_states(model, gone):
    layer = model.get_layer("rnn")
    ways = getattr(layer, "forward_layer", layer), getattr(layer, "backward_layer", layer)
    for way in ways:
        zero(way.cell.recurrent_kernel, 0, gone)
    twice = model.get_layer("out").kernel.shape[0] == 10
    zero(model.get_layer("out").kernel, 0, [*gone, *(5 + i for i in gone)] if twice else gone)


def without_inputs(model, gone):
    layer = model.get_layer("rnn")
    for way in {getattr(layer, "forward_layer", layer), getattr(layer, "backward_layer", layer)}:
        zero(way.cell.kernel, 0, gone)


def text():
    """Tokens of which some are padding, an encoder and a decoder that begins with its states."""
    inputs = keras.Input((6,), dtype="int32")
    tokens = layers.Embedding(9, 6, mask_zero=True, name="tokens")(inputs)
    _, h, c = layers.LSTM(5, return_state=True, name="rnn")(tokens)
    x = layers.LSTM(5, return_sequences=True, name="decoder")(tokens, initial_state=[h, c])
    x = layers.TimeDistributed(layers.Dense(7, "relu", name="inner"), name="steps")(x)
    x = layers.TimeDistributed(layers.Dense(4, name="last"), name="more")(x)
    return keras.Model(inputs, layers.Dense(3, name="out")(layers.GlobalMaxPooling1D()(x)))


def without_tied_states(model, gone):
    for name in ("rnn", "decoder"):
        zero(model.get_layer(name).cell.recurrent_kernel, 0, gone)
    zero(model.get_layer("steps").layer.kernel, 0, gone)


def without_tokens(model, gone):
    for name in ("rnn", "decoder"):
        zero(model.get_layer(name).cell.kernel, 0, gone)


def without_steps(model, gone):
    zero(model.get_layer("more").layer.kernel, 0, gone)


RECURRENT = {
    "simple": (recurrent(layers.SimpleRNN), "rnn", [0, 3], without_states),
    "gru": (recurrent(layers.GRU), "rnn", [0, 3], without_states),
    "gru_before": (recurrent(layers.GRU, True, reset_after=False), "rnn", [4], without_states),
    "lstm": (recurrent(layers.LSTM, True), "rnn", [0, 3], without_states),
    "lstm_plain": (recurrent(layers.LSTM, use_bias=False, unroll=True, recurrent_dropout=0.3),
                   "rnn", [1], without_states),
    "given_to_gru": (recurrent(layers.GRU), "before", [0, 3], without_inputs),
    "given_to_both": (both_ways(layers.LSTM, "concat"), "before", [0, 3], without_inputs),
    "both_lstm": (both_ways(layers.LSTM, "concat", True), "rnn", [0, 3], without_states),
    "both_gru": (both_ways(layers.GRU, "ave"), "rnn", [0, 3], without_states),
    "both_apart": (both_ways(layers.SimpleRNN, None), "rnn", [0, 3], without_states),
    "text_states": (text, "rnn", [0, 3], without_tied_states),
    "text_tokens": (text, "tokens", [0, 3], without_tokens),
    "text_steps": (text, "inner", [0, 3, 6], without_steps),
}  # fmt: skip
CASES = {**ATTENTION, **RECURRENT}


def randomised(model, random):
    for variable in model.variables:
        if "seed" not in variable.path:
            variable.assign(random.normal(size=variable.shape) * 0.7)
    return model


def data_for(model, random, samples=3):
    (tensor,) = model.inputs
    shape = (samples, *tensor.shape[1:])
    return random.integers(0, 9, shape) if "int" in tensor.dtype else random.normal(size=shape)


@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.parametrize("case", CASES)
def test_what_is_left_is_as_if_units_were_zero(case, random, float64, tmp_path):
    """To rounding in float64; a control: the outputs without zeroing are others."""
    build, path, gone, change = CASES[case]
    model = randomised(build(), random)
    model.compile("adam", "mse", run_eagerly=True)  # nothing to be traced
    x = data_for(model, random)
    model.train_on_batch(x, np.zeros(model(x).shape))
    smaller = quietly(model, {path: gone})
    zeroed = keras.models.clone_model(model)
    zeroed.set_weights(model.get_weights())
    change(zeroed, gone)
    found, expected = array(smaller(x)), array(zeroed(x))
    np.testing.assert_allclose(found, expected, atol=1e-9 * max(expected.std(), 1.0))
    assert np.abs(array(model(x)) - expected).max() > 1e-3 * expected.std()
    assert smaller.count_params() < model.count_params()
    assert [v.path for v in smaller.variables] == [v.path for v in model.variables]
    slots = [v.path for v in smaller.optimizer.variables]
    assert slots == [v.path for v in model.optimizer.variables]
    shapes = {tuple(v.shape) for v in smaller.trainable_variables}
    assert {tuple(v.shape) for v in smaller.optimizer.variables[2:]} == shapes

    save_model(smaller, tmp_path / "m.keras")
    again = load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(array(again(x)), found, rtol=1e-12)
    again.train_on_batch(x, np.zeros(found.shape))


def heads_of(layer, query, memory):
    """What attention gives before its last kernel, `[samples, places, heads * width]`."""
    dense = (layer._query_dense, layer._key_dense, layer._value_dense)
    q, k, v = (
        np.einsum("btm,mnh->btnh", x, array(d.kernel).astype(np.float64)) + array(d.bias)
        for x, d in zip((query, memory, memory), dense, strict=True)
    )
    k, v = (np.repeat(x, q.shape[2] // k.shape[2], axis=2) for x in (k, v))
    scores = np.exp(np.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(q.shape[-1]))
    found = np.einsum("bnts,bsnh->btnh", scores / scores.sum(-1, keepdims=True), v)
    return found.reshape(*found.shape[:2], -1)


REFITTED = {
    "heads": ("heads", {"att": [1]}),
    "share": ("heads", {"att": 0.5}),
    "groups": ("groups", {"att": [1]}),
    "queries": ("heads", {"q": [1]}),
    "all": ("heads", {"att": [1, 2], "v": [3], "att/attention_output": [0, 4]}),
    "said_outputs": ("said_outputs", {"att": [0], "att/attention_output": [2]}),
}


@pytest.mark.parametrize("case", REFITTED)
def test_the_last_kernel_of_attention_is_refitted(case, random):
    """Least squares on what NumPy gives for the heads, to 1e-4 of the size of the target."""
    name, units = REFITTED[case]
    model = randomised(CASES[name][0](), random)
    x = random.normal(size=(100, 5, 4)).astype("float32")
    smaller = quietly(model, units, x)
    rows = heads_of(smaller.get_layer("att"), value(smaller, "q", x), value(smaller, "v", x))
    target = value(model, "att", x)
    left = np.setdiff1d(np.arange(target.shape[-1]), units.get("att/attention_output", []))
    target = target[..., left].reshape(-1, len(left))
    best = best_fit(rows.reshape(len(target), -1), target)
    found = value(smaller, "att", x).reshape(best.shape)
    size = np.sqrt((target**2).mean())
    np.testing.assert_allclose(found, best, atol=1e-4 * size)
    assert np.abs(best - target).max() > 0.01 * size  # there is something to lose


@pytest.mark.tensorflow
def test_heads_that_are_missed_least_go(random):
    """A copy of another head, of which a share takes one."""
    model = randomised(residual_attention(), random)
    att = model.get_layer("att")
    x = random.normal(size=(60, 5, 4)).astype("float32")
    for dense in (att._query_dense, att._key_dense, att._value_dense):
        for variable in (dense.kernel, dense.bias):
            found = array(variable).copy()
            found[..., 1, :] = found[..., 0, :]
            variable.assign(found)
    smaller = quietly(model, {"att": 0.5}, x)
    expected = array(model(x))
    np.testing.assert_allclose(array(smaller(x)), expected, atol=1e-4 * expected.std())
    smaller = quietly(model, {"att": 0.5}, x, criterion="magnitude")
    assert smaller.get_layer("att").num_heads == 1


def uneven(x, _):
    ways = layers.LSTM(4), layers.LSTM(5, go_backwards=True)
    return layers.Bidirectional(ways[0], backward_layer=ways[1])(x)


def turned(x, _):
    x = layers.Permute((2, 1))(x)
    return layers.MultiHeadAttention(2, 4)(x, x)


def grouped(x, other):
    return layers.GroupQueryAttention(4, 2, 1, name="b")(x, other)


# What takes the units of `a`, and another input; of which layer a unit is asked for; why it stays.
STAY = {
    "lstm": (lambda x, _: layers.LSTM(4)(x), "a", None),
    "attention": (lambda x, _: layers.MultiHeadAttention(2, 4)(x, x), "a", None),
    "scores": (lambda x, _: layers.MultiHeadAttention(2, 4)(x, x, return_attention_scores=True)[1],
               "a", None),
    "grouped": (lambda x, _: grouped(x, layers.ReLU()(x)), "b/attention_output", None),
    "grouped_inputs": (grouped, "b/attention_output", "b needs as many of it as it has of others"),
    "turned": (turned, "a", "mixes it with others"),
    "steps": (lambda x, _: layers.TimeDistributed(layers.Dense(4))(x), "a", None),
    "other_steps": (lambda x, _: layers.TimeDistributed(layers.LayerNormalization())(x), "a",
                    "cannot be thinned: it is a TimeDistributed LayerNormalization"),
    "stateful": (lambda x, _: layers.LSTM(4, stateful=True)(x), "a",
                 "cannot be thinned: it keeps its states from one batch to the next"),
    "uneven": (uneven, "a", "its two directions have different numbers of units"),
    "fixed": (lambda x, _: layers.GRU(6, name="b")(x, initial_state=[np.zeros((2, 6))]), "b",
              "b begins with states that are given"),
    "input": (lambda x, other: layers.GRU(6, name="b")(x, initial_state=[other[:, 0]]), "b",
              "b needs as many of it as it has of others"),
    "mixed": (lambda x, _: layers.LSTM(4, activation="softmax", name="b")(x), "b",
              "the activation function of b mixes it with others"),
}  # fmt: skip


@pytest.mark.tensorflow
@pytest.mark.parametrize("case", STAY)
def test_units_that_have_to_stay(case):
    make, name, reason = STAY[case]
    inputs, other = (keras.Input((4, 6), batch_size=2) for _ in range(2))
    x = layers.Flatten()(make(layers.Dense(6, name="a")(inputs), other))
    model = keras.Model([inputs, other], layers.Dense(3)(x))
    found = find_channels(model).reasons(name).get(0)
    assert found is None if reason is None else reason in found


def transformer(causal=False):
    """Two blocks, normalised before, as they are written today."""
    inputs = keras.Input((6,), dtype="int32")
    x = layers.Embedding(9, 8, name="tokens")(inputs)
    for block in "ab":
        y = layers.LayerNormalization()(x)
        y = layers.MultiHeadAttention(4, 2, dropout=0.1, name=f"{block}_att")(
            y, y, use_causal_mask=causal
        )
        x = layers.Add()([x, layers.Dropout(0.1)(y)])
        y = layers.Dense(16, "gelu", name=f"{block}_up")(layers.LayerNormalization()(x))
        x = layers.Add()([x, layers.Dense(8, name=f"{block}_down")(y)])
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return keras.Model(inputs, layers.Dense(3, name="out")(x))


@pytest.mark.slow
@pytest.mark.tensorflow
def test_a_transformer(random):
    """All but its outputs may go, and its stream is one; half of its heads and hidden units are
    missed much less where what comes behind is refitted."""
    model = transformer()
    channels = find_channels(model)
    assert [path for path in channels.makers if channels.reasons(path)] == ["out"]
    stream = {channels.roots(path)[0]: path for path in channels.makers}
    assert len(stream) == len(channels.makers) - 4
    x = random.integers(0, 9, (200, 6))
    units = {"a_att": 0.5, "b_att": 0.5, "a_up": 0.5, "b_up": 0.5}
    target = array(model(x))

    def missed(smaller):
        return ((array(smaller(x)) - target) ** 2).mean() / target.var(0).mean()

    gone = {path: list(range(8 if "up" in path else 2)) for path in units}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        chosen, refitted = (remove_units(model, wanted, x) for wanted in (units, gone))
    plain = missed(quietly(model, gone))
    assert missed(chosen) < 0.3 * plain
    assert missed(refitted) < 0.3 * plain
    assert [chosen.get_layer(f"{block}_att").num_heads for block in "ab"] == [2, 2]
    thinner = quietly(model, {"tokens": [0, 5]}, x)
    assert thinner.get_layer("b_att").output.shape[-1] == 6


def test_masks_go_along(random):
    """What is behind a mask is refitted to what the model does, not to what it would do without."""
    inputs = keras.Input((6,), dtype="int32")
    x = layers.Embedding(9, 6, mask_zero=True, name="tokens")(inputs)
    x = layers.Dropout(0.1)(x)
    pooled = layers.GlobalAveragePooling1D(name="pooled")(x)
    model = keras.Model(inputs, layers.Dense(3, name="out")(pooled))
    x = random.integers(0, 9, (300, 6))
    x[:, 4:] = 0
    smaller = quietly(model, {"tokens": [1, 4]}, x)
    target = array(model(x)).astype(np.float64)
    best = best_fit(value(smaller, "pooled", x), target)
    np.testing.assert_allclose(array(smaller(x)), best, atol=1e-4 * target.std())


def test_attention_heeds_masks(random):
    """Padding is no key: the last kernel is fitted to heads that do not look at it."""
    tokens, query = keras.Input((6,), dtype="int32"), keras.Input((5, 4), name="query")
    memory = layers.Embedding(9, 6, mask_zero=True, name="tokens")(tokens)
    x = layers.MultiHeadAttention(3, 2, name="att")(query, memory)
    model = keras.Model([tokens, query], layers.Dense(2)(x))
    randomised(model, random)
    x = [random.integers(1, 9, (100, 6)), random.normal(size=(100, 5, 4)).astype("float32")]
    x[0][:, 3:] = 0
    smaller = quietly(model, {"att": [1]}, x)
    target = value(model, "att", x).reshape(500, -1)
    rows = heads_of(smaller.get_layer("att"), x[1], value(smaller, "tokens", x)[:, :3])
    found = value(smaller, "att", x).reshape(500, -1)
    best = best_fit(rows.reshape(500, -1), target)
    np.testing.assert_allclose(found, best, atol=1e-4 * np.sqrt((target**2).mean()))


def test_a_share_of_states_and_what_takes_them(random):
    """The layer behind is fitted to the states that are left; that the next one is not, is told."""
    inputs = keras.Input((7, 4))
    x = layers.LSTM(8, return_sequences=True, name="first")(inputs)
    x = layers.TimeDistributed(layers.Dense(6, "relu", name="inner"), name="steps")(x)
    x = layers.Bidirectional(layers.GRU(5), name="second")(x)
    model = keras.Model(inputs, layers.Dense(3, name="out")(x))
    x = random.normal(size=(150, 7, 4)).astype("float32")
    with pytest.warns(UserWarning, match="second is not refitted: it is a Bidirectional"):
        smaller = remove_units(model, {"first": 0.5, "second": [0]}, x)
    assert smaller.get_layer("first").units == 4
    assert smaller.get_layer("second").forward_layer.units == 4
    for name, before in (("steps", "first"), ("out", "second")):
        dense, teacher = (getattr(m.get_layer(name), "layer", m.get_layer(name))
                          for m in (smaller, model))  # fmt: skip
        rows = value(smaller, before, x)
        rows = rows.reshape(-1, rows.shape[-1])
        given = value(model, before, x)
        target = given.reshape(len(rows), -1) @ array(teacher.kernel) + array(teacher.bias)
        found = rows @ array(dense.kernel) + array(dense.bias)
        size = np.sqrt((target**2).mean())
        np.testing.assert_allclose(found, best_fit(rows, target), atol=1e-4 * size)
        assert np.abs(found - target).max() > 0.01 * size


def test_shares_of_what_no_refit_makes_up_for(random):
    """What goes into queries is in no regression; the smallest may go all the same."""
    model = randomised(CASES["heads"][0](), random)
    x = random.normal(size=(20, 5, 4)).astype("float32")
    with pytest.raises(ValueError, match="No layer that could be refitted takes what 'q' makes"):
        remove_units(model, {"q": 0.5}, x)
    smaller = quietly(model, {"q": 0.5, "att": 0.5}, x, criterion="magnitude")
    norms = (array(model.get_layer("q").kernel) ** 2).sum(0)
    kept = np.sort(np.argsort(norms)[3:])
    found = array(smaller.get_layer("q").kernel)
    np.testing.assert_array_equal(found, array(model.get_layer("q").kernel)[:, kept])
