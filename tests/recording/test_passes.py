"""What is known of data before a pass, and their first batch."""

import inspect
import itertools
import math

import keras
import numpy as np
import pytest
import reference
from backends import some_on_each
from keras import ops

from keras_layer_entropy import EntropyAnalyzer, analyze_model, analyze_units
from keras_layer_entropy.datasets import Dataset
from keras_layer_entropy.measures.registry import MEASURES
from keras_layer_entropy.pruning import score
from keras_layer_entropy.pruning.accuracies import accuracy_metrics
from keras_layer_entropy.pruning.criteria import Situation
from keras_layer_entropy.pruning.evaluation import evaluate
from keras_layer_entropy.recording import passes
from keras_layer_entropy.recording.passes import Source

X = np.arange(60, dtype="float32").reshape(20, 3)
Y = np.arange(20) % 3


class Batches(keras.utils.PyDataset):
    def __init__(self, batches, known=True):
        super().__init__()
        self._batches, self._known = batches, known

    def __getitem__(self, index):
        return self._batches[index]

    @property
    def num_batches(self):
        return len(self._batches) if self._known else None


def pairs(tf):
    return tf.data.Dataset.from_tensor_slices((X, Y))


def endless_generator():
    while True:
        yield X[:4], Y[:4]


def of_a_generator(tf):
    signature = (tf.TensorSpec((None, 3)), tf.TensorSpec((None,), tf.int64))
    return tf.data.Dataset.from_generator(endless_generator, output_signature=signature)


ENDLESS = {
    "repeated": lambda tf: pairs(tf).batch(4).repeat(),
    "repeated, mapped, prefetched": lambda tf: (
        pairs(tf).repeat().batch(4).map(lambda *batch: batch).prefetch(2)
    ),
    "PyDataset": lambda tf: Batches([(X, Y)], known=False),
    "drawn from": lambda tf: tf.data.Dataset.sample_from_datasets(
        [pairs(tf).batch(4).repeat()] * 2
    ),
}
NOT_KNOWN = {
    "generator": lambda tf: endless_generator(),
    "iterator": lambda tf: iter([(X, Y)]),
    "data set of a generator": of_a_generator,
    "the same, changed": lambda tf: of_a_generator(tf).unbatch().batch(7).prefetch(1),
    "repeated, filtered": lambda tf: pairs(tf).repeat().filter(lambda x, y: y >= 0).batch(4),
    "repeated inside": lambda tf: (
        tf.data.Dataset.range(3)
        .interleave(lambda i: pairs(tf).filter(lambda x, y: y > 0).repeat())
        .batch(4)
    ),
}
FINITE = {
    "arrays": lambda tf: (X, Y),
    "data set": lambda tf: pairs(tf).batch(4),
    "filtered": lambda tf: pairs(tf).filter(lambda x, y: y > 0).batch(4),
    "filtered, repeated twice, shuffled": lambda tf: (
        pairs(tf).filter(lambda x, y: y > 0).repeat(2).shuffle(5).batch(4)
    ),
    "interleaved": lambda tf: tf.data.Dataset.range(3).interleave(lambda i: pairs(tf)).batch(4),
    "unbatched": lambda tf: pairs(tf).batch(4).unbatch().batch(2),
    "told how long": lambda tf: of_a_generator(tf).apply(
        tf.data.experimental.assert_cardinality(9)
    ),
    "PyDataset": lambda tf: Batches([(X, Y)]),
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_data_that_say_that_they_never_end(kind):
    data = ENDLESS[kind](pytest.importorskip("tensorflow"))
    for must_end in (False, True):
        with pytest.raises(ValueError, match="have no end: pass steps="):
            Source(data, must_end=must_end)
        assert Source(data, steps=3, must_end=must_end).steps == 3


@pytest.mark.parametrize("kind", NOT_KNOWN)
def test_data_of_which_nobody_can_know(kind):
    tf = pytest.importorskip("tensorflow")
    Source(NOT_KNOWN[kind](tf))
    Source(NOT_KNOWN[kind](tf), steps=2, must_end=True)
    with pytest.raises(ValueError, match="Nobody can know.*pass steps="):
        Source(NOT_KNOWN[kind](tf), must_end=True)


@pytest.mark.parametrize("kind", FINITE)
def test_data_that_end(kind):
    Source(FINITE[kind](pytest.importorskip("tensorflow")), must_end=True)


BATCHES_OF_ONE = {  # X and Y: batches, whether all have one shape
    "few": (lambda tf: pairs(tf).batch(1), 20, True),
    "more": (lambda tf: pairs(tf).repeat(2).take(31).batch(1), 31, True),
    "not known": (lambda tf: pairs(tf).batch(1).filter(lambda x, y: y[0] >= 0), math.inf, True),
    "of a generator": (lambda tf: endless_generator(), math.inf, False),
    "arrays": (lambda tf: (np.repeat(X, 2, axis=0), np.repeat(Y, 2)), 40, True),
    "of several shapes": (lambda tf: pairs(tf).padded_batch(1, ([None], [])), 20, False),
}


@pytest.mark.tensorflow
@pytest.mark.parametrize("kind", BATCHES_OF_ONE)
def test_how_many_batches_there_are_and_whether_they_have_one_shape(kind):
    make, batches, one_shape = BATCHES_OF_ONE[kind]
    source = Source(make(pytest.importorskip("tensorflow")), batch_size=1)
    assert (source.batches, source.one_shape) == (batches, one_shape)
    assert Source(make(pytest.importorskip("tensorflow")), batch_size=1, steps=7).batches == 7


@pytest.mark.slow
@pytest.mark.tensorflow
def test_few_batches_are_not_traced_and_many_are_for_xla(monkeypatch):
    """Those of all passes count; what is measured is the same."""
    monkeypatch.setattr(passes, "_FEW", 20)
    monkeypatch.setattr(passes, "_MANY", 50)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4), keras.layers.Dense(3)])
    measures = [name for name in MEASURES if name != "feature_entropy"]  # of convolutions
    analyzer, found = EntropyAnalyzer(model, measures=measures), []
    for eager, jit in ((True, False), (False, False), (False, True)):  # 20 batches, 40, 60
        found.append(analyzer.analyze((X, Y), batch_size=1, verbose=0))
        assert (analyzer._pass.run_eagerly, analyzer._pass.jit_compile) == (eager, jit)
    for profile, name in itertools.product(found[1:], measures):
        want = found[0][name].per_class
        np.testing.assert_allclose(profile[name].per_class, want, atol=1e-5)  # float32


class NotForXLA(keras.layers.Layer):
    """Does what XLA does not know, or what nobody can do."""

    def __init__(self, fails=False):
        super().__init__()
        self.fails = fails

    def call(self, x):
        import tensorflow as tf

        def double(values):
            if self.fails and len(values) == 3:  # the last batch
                raise ValueError("these values cannot be doubled")
            return 2 * values

        return tf.ensure_shape(tf.numpy_function(double, [x], tf.float32), x.shape)


@pytest.mark.tensorflow
def test_what_xla_does_not_know_runs_without_it(random, monkeypatch):
    monkeypatch.setattr(passes, "_MANY", 32)
    dense = keras.layers.Dense(3, name="out")
    model = keras.Sequential([keras.Input((3,)), NotForXLA(), dense])
    x, y = random.normal(size=(256, 3)).astype("float32"), np.arange(256) % 3
    analyzer = EntropyAnalyzer(model)
    for _ in range(2):  # and is not tried again
        profile = analyzer.analyze((x, y), batch_size=8, verbose=0)
        want = reference.by_class(reference.activation_entropy, model.predict(x, verbose=0), y, 3)
        np.testing.assert_allclose(profile.entropy[0], want, atol=1e-5)
    assert analyzer._pass._jit_failed


@pytest.mark.tensorflow
@pytest.mark.parametrize("batches", [4, 10, 40])  # untraced, traced, by XLA
def test_other_errors_of_a_model_are_its_own(batches, random, monkeypatch):
    monkeypatch.setattr(passes, "_MANY", 32)
    model = keras.Sequential([keras.Input((3,)), NotForXLA(fails=True), keras.layers.Dense(3)])
    samples = 8 * batches + 3
    x = random.normal(size=(samples, 3)).astype("float32")
    with pytest.raises(Exception, match="these values cannot be doubled"):
        EntropyAnalyzer(model).analyze((x, np.arange(samples) % 3), batch_size=8, verbose=0)


def of_every_kind():
    """Kind -> what Keras's `evaluate` takes, always the same numbers."""
    kinds = {
        "arrays": lambda: (X, Y),
        "float64": lambda: (X.astype("float64"), Y.astype("float64")),
        "lists of arrays and numbers": lambda: [X, Y.tolist()],
        "PyDataset of lists": lambda: Batches([[X[:9], Y[:9]], [X[9:], Y[9:]]]),
        "generator": lambda: (batch for batch in [(X[:9], Y[:9]), (X[9:], Y[9:])]),
        "iterator of lists": lambda: iter([[X[:9], Y[:9]], [X[9:], Y[9:]]]),
    }

    def pandas(make):
        pd = pytest.importorskip("pandas")
        return lambda: make(pd, pd.DataFrame(X), pd.Series(Y))

    def scipy(form):
        sparse = pytest.importorskip("scipy.sparse")
        return lambda: (getattr(sparse, form)(X), Y)

    def jax():
        jnp = pytest.importorskip("jax.numpy")
        return jnp.asarray(X), jnp.asarray(Y)

    def tensorflow(make):
        return lambda: make(pytest.importorskip("tensorflow"))

    return {
        **kinds,
        "table and column": pandas(lambda pd, x, y: (x, y)),
        "array and column": pandas(lambda pd, x, y: (X, y)),
        "tables": pandas(lambda pd, x, y: (x, y.to_frame())),
        "table and weights": pandas(lambda pd, x, y: (x, y, pd.Series(np.ones(20)))),
        "table, one-hot": pandas(lambda pd, x, y: (x, pd.get_dummies(y))),
        "table, other rows": pandas(lambda pd, x, y: (x.set_index(Y), y.set_axis(Y))),
        "csr_matrix": scipy("csr_matrix"),
        "coo_matrix": scipy("coo_matrix"),
        "csc_array": scipy("csc_array"),
        "jax": jax,
        "tf.Tensor": tensorflow(lambda tf: (tf.constant(X), tf.constant(Y))),
        "tf.SparseTensor": tensorflow(lambda tf: (tf.sparse.from_dense(X), Y)),
        "tf.data": tensorflow(lambda tf: pairs(tf).batch(9)),
        "tf.data of sparse tensors": tensorflow(
            lambda tf: tf.data.Dataset.from_tensor_slices((tf.sparse.from_dense(X), Y)).batch(9)
        ),
    }


def _kinds():
    """Keras itself reads no data set of sparse tensors on PyTorch."""
    kinds = list(of_every_kind())
    return some_on_each(kinds, kinds[:-1] if keras.backend.backend() == "torch" else kinds)


@pytest.mark.slow
@pytest.mark.parametrize("kind", _kinds())
def test_every_kind_of_data_is_measured_as_evaluate_reads_it(kind):
    make = of_every_kind()[kind]
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3, "softmax", name="out")])
    one_hot = kind == "table, one-hot"
    model.compile("sgd", f"{'' if one_hot else 'sparse_'}categorical_crossentropy")
    want = analyze_model(model, (X, np.eye(3)[Y] if one_hot else Y), verbose=0)
    found = analyze_model(model, make(), verbose=0)
    assert found.count.tolist() == np.bincount(Y).tolist()
    # float32 sums in another order: activations of size 10.
    np.testing.assert_allclose(found.entropy, want.entropy, rtol=0, atol=1e-5)
    assert found.metrics["loss"] == pytest.approx(want.metrics["loss"], rel=1e-5)
    x, y, weight = keras.utils.unpack_x_y_sample_weight(Source(make()).first())
    np.testing.assert_array_equal(
        ops.convert_to_numpy(ops.convert_to_tensor(x, sparse=False))[:9], X[:9]
    )


SLIPS = {
    "a name": (lambda: "mnist", {}, r"data is 'mnist' \(str\); expected \(x, y\)"),
    "nothing": (lambda: None, {}, "data has no inputs"),
    "a number": (lambda: 3, {}, r"data is 3 \(int\); expected"),
    "nested lists": (lambda: (X.tolist(), Y), {}, r"x holds 0.0 \(float\); expected arrays"),
    "nested lists as labels": (
        lambda: (X, np.eye(3)[Y].tolist()),
        {},
        "y holds 1.0 .*expected arr",
    ),
    "objects": (lambda: (X, Y.astype(object)), {}, "y holds array.*expected arrays"),
    "texts": (lambda: (X, np.array(["a", "b"] * 10)), {}, "y holds .*Texts as labels"),
    "list of texts": (lambda: (X, ["a", "b"] * 10), {}, "y holds .*Texts as labels"),
    "a data set with labels": (lambda: (Batches([X]), Y), {}, "x holds .*Batches"),
    "one number as labels": (lambda: (X, np.float32(1)), {}, "y holds .*expected arrays"),
    "other lengths": (lambda: (X, Y[:7]), {}, "(?s)x.*20.*y.*7"),
    "no samples": (lambda: (X[:0], Y[:0]), {}, "hold no samples"),
    "no batches": (lambda: Batches([]), {}, "hold no samples"),
    "an empty generator": (lambda: iter([]), {}, "hold no samples"),
    "batch_size=0": (lambda: (X, Y), {"batch_size": 0}, "batch_size=0; expected a positive int"),
    "batch_size=2.5": (lambda: (X, Y), {"batch_size": 2.5}, "batch_size=2.5; expected a positive"),
    "steps=0": (lambda: (X, Y), {"steps": 0}, "steps=0; expected a positive int"),
    "steps='all'": (lambda: (X, Y), {"steps": "all"}, "steps='all'; expected a positive int"),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_slips(slip):
    make, options, message = SLIPS[slip]
    with pytest.raises(ValueError, match=message):
        Source(make(), **options).first()


def test_batches_of_generators_may_lack_parts():
    x, y, weight = Source(iter([(X, None, np.ones(20))])).first()
    assert y is None
    assert (tuple(x.shape), tuple(weight.shape)) == (X.shape, (20,))


class Counting(keras.layers.Layer):
    """Counts its calls, draws a number in each, and adds the count to what it is given."""

    def build(self, shape):
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False, name="calls")
        self.seeds = keras.random.SeedGenerator(3)

    def call(self, x):
        self.calls.assign(self.calls + 1)
        return x + self.calls + keras.random.normal(ops.shape(x), seed=self.seeds)


class Own(keras.Model):
    """Makes its layers when it is called."""

    def __init__(self):
        super().__init__()
        self.counting = Counting()
        self.out = keras.layers.Dense(3, name="out", kernel_initializer="ones")

    def call(self, x):
        return self.out(self.counting(x))


COUNTING = {
    "Sequential": lambda: keras.Sequential(
        [Counting(), keras.layers.Dense(3, name="out", kernel_initializer="ones")]
    ),
    "subclassed": Own,
}


@pytest.mark.parametrize("built", [False, True])
@pytest.mark.parametrize("kind", COUNTING)
def test_only_the_pass_moves_what_a_model_counts(kind, built):
    """Not a first run on the first batch, which finds out what the model gives."""
    model = COUNTING[kind]()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    layer = model.layers[0]
    if built:
        model.build((None, 3))
    analyze_model(model, (X, Y), batch_size=5, verbose=0)
    seeds = ops.convert_to_numpy(layer.seeds.state).tolist()
    assert float(layer.calls) == 4
    again = COUNTING[kind]()
    again.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    again.build((None, 3))
    again.evaluate(X, Y, batch_size=5, verbose=0)
    assert ops.convert_to_numpy(again.layers[0].seeds.state).tolist() == seeds


def test_a_stateful_layer_starts_where_it_stood():
    """The first analysis like the second, and like `predict` from the same state."""
    strong = keras.initializers.RandomNormal(stddev=2, seed=0)
    lstm = keras.layers.LSTM(4, stateful=True, kernel_initializer=strong, return_sequences=True)
    model = keras.Sequential([keras.Input(batch_shape=(5, 2, 3)), lstm, keras.layers.Dense(3)])
    x = np.random.default_rng(0).normal(size=(20, 2, 3)).astype("float32")
    pattern = reference.by_class(
        reference.activation_entropy,
        model.predict(x, batch_size=5, verbose=0),
        np.arange(20) % 1,
        1,
    )
    analyzer = EntropyAnalyzer(model)
    for _ in range(2):
        lstm.reset_state()
        found = analyzer.analyze(x, batch_size=5, verbose=0)
        np.testing.assert_allclose(found.entropy[-1], pattern, rtol=0, atol=1e-5)


def test_units_move_nothing_before_their_pass():
    model = keras.Sequential([keras.layers.Conv2D(2, 3, name="conv"), Counting()])
    x = np.random.default_rng(0).normal(size=(20, 6, 6, 1)).astype("float32")
    model.add(keras.layers.GlobalAveragePooling2D())
    model.add(keras.layers.Dense(3))
    analyze_units(model, (x, Y), batch_size=5, verbose=0)
    assert float(model.layers[1].calls) == 4


@pytest.mark.tensorflow  # no backend in it
def test_batches_are_of_one_size_wherever_it_may_be_left_out():
    for function in (
        Source,
        EntropyAnalyzer.analyze,
        analyze_model,
        analyze_units,
        Dataset.batches,
        evaluate,
        score,
        accuracy_metrics,
        Situation,
    ):
        assert inspect.signature(function).parameters["batch_size"].default == 256, function
