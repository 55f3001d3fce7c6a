"""The dry run of the command line: what could go, on the terminal and on a page."""

import itertools
import re

import keras
import pytest
from command_lines import call

from keras_layer_entropy import load_model, save_model
from keras_layer_entropy.datasets import DatasetSpec, load_dataset
from keras_layer_entropy.pruning.block_parts import find_blocks
from keras_layer_entropy.pruning.channels import find_channels
from keras_layer_entropy.pruning.layer_parts import removable_layers

pytestmark = pytest.mark.tensorflow
LINE = re.compile(
    r"^\d+\. (\S+) \((block|layer|units)\) +([\d,]+) +(-?[\d.]+)% +(-?[\d.]+)% +(-?[\d.]+)% +"
    r"([\d.]+)%  (.+)$",
    re.MULTILINE,
)


@pytest.fixture(scope="module")
def residual(tmp_path_factory):
    """A network with blocks, layers and units that can go, and some that cannot, trained."""
    keras.utils.set_random_seed(0)
    dense = keras.layers.Dense
    inputs = keras.Input((64,))
    x = dense(16, "relu", name="stem")(inputs)
    for number in range(2):
        branch = dense(24, "relu", name=f"wide_{number}")(x)
        x = keras.layers.Add(name=f"sum_{number}")([x, dense(16, name=f"narrow_{number}")(branch)])
    x = dense(12, "relu", name="hidden")(x)
    model = keras.Model(inputs, dense(10, "softmax", name="out")(x))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(*load_dataset(DatasetSpec("digits", split="train", shape=(64,))).arrays, verbose=0)
    return save_model(model, tmp_path_factory.mktemp("saved") / "net.keras", dataset="digits")


@pytest.fixture(scope="module")
def dry(residual, tmp_path_factory):
    """What a dry run prints, and the page that it writes."""
    page = tmp_path_factory.mktemp("page") / "plan.html"
    code, out, err = call("prune", "--model", residual, "--dry_run", "--report", page)
    assert code == 0, out + err
    return out, page


def test_every_part_that_can_go_has_a_line_and_every_other_a_reason(residual, dry):
    out, _ = dry
    model, lines = load_model(residual), LINE.findall(out)
    named = {(name, kind) for name, kind, *_ in lines}
    stays = dict(re.findall(r"^(\S+) stays: (.+)$", out, re.MULTILINE))
    blocks, _ = find_blocks(model)
    layers, reasons = removable_layers(model)
    assert set(blocks) == {"sum_0", "sum_1"}
    assert set(layers) == {"wide_0", "wide_1", "hidden"}
    assert {name for name, kind in named if kind == "block"} == set(blocks)
    assert {name for name, kind in named if kind == "layer"} == set(layers)
    for name, reason in reasons.items():
        assert reason in stays[name]
    # Of tied layers one stands for all.
    units = {name for name, kind in named if kind == "units"}
    tied = {x for line in lines for x in re.findall(r"\w+", line[-1].partition("; with ")[2])}
    for maker in find_channels(model).makers:
        assert maker in units | tied or stays[maker]
    assert "out" in stays
    # In the order of what they cost for what they save, as much as the digits tell.
    prices = [
        float(change) ** 2 / (float(parameters) + float(flops))
        for _, _, _, parameters, flops, _, change, _ in lines
    ]
    for first, second in itertools.pairwise(prices):
        assert first <= 1.2 * second


def test_a_line_says_what_the_model_without_the_part_does_not_have(residual, dry):
    model = load_model(residual)
    found = {line[:2]: line for line in LINE.findall(dry[0])}
    # The branch, 16 * 24 + 24 and 24 * 16 + 16, less 16 * 16 + 16 of what stands in for it.
    assert found["sum_0", "block"][2] == "536"
    # 16 * 24 + 24, and 8 * 16 of the next layer, which takes so many features less then.
    assert found["wide_0", "layer"][2] == "536"
    share = 100 * 536 / model.count_params()
    assert float(found["sum_0", "block"][3]) == pytest.approx(share, abs=0.051)  # one decimal
    for _, _, _, _, _, time, change, words in found.values():
        assert 0 < float(time) < 100
        assert float(change) > 0
        assert "outputs change" not in words


@pytest.mark.slow
def test_a_dry_run_writes_the_page_and_nothing_else(residual, dry):
    out, page = dry
    assert f"Dry run: nothing was written but {page}" in out
    assert [path.name for path in page.parent.iterdir()] == ["plan.html"]
    files = {path.name for path in residual.parent.iterdir()}
    assert files == {"net.keras", "net.keras.dataset.json"}
    text = page.read_text().replace("<wbr>", "")
    section = text[text.index('<section id="plan">') :]
    for name, kind, parameters, *_, words in LINE.findall(out):
        cells = rf">{name}<.*?>{kind}<.*?>{parameters}<.*?>{re.escape(words)}<"
        assert re.search(cells, section, re.DOTALL)
    for name, reason in re.findall(r"^(\S+) stays: (.+)$", out, re.MULTILINE):
        assert re.search(rf">{name}</bdi></dt><dd>{re.escape(reason)}<", section)
    assert "<h2>Entropy against depth</h2>" in text


@pytest.mark.slow
def test_an_existing_page_is_refused_and_overwritten_only_when_told(residual, tmp_path):
    page, before = tmp_path / "plan.html", residual.read_bytes()
    page.write_text("mine")
    arguments = ("prune", "--model", residual, "--dry_run", "--remove=layers", "--report")
    code, out, err = call(*arguments, page)
    assert (code, page.read_text()) == (2, "mine")
    assert out == ""  # before anything is measured
    assert "pass --overwrite" in err
    code, _, err = call(*arguments, residual, "--overwrite")
    assert (code, residual.read_bytes()) == (2, before)
    assert "would write over" in err
    code, out, err = call(*arguments, page, "--overwrite")
    assert code == 0, out + err
    assert 'id="plan"' in page.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("share", "missed"), [("0.9", False), ("0.0001", True)])
def test_a_target_that_all_parts_together_do_not_reach_is_told(residual, share, missed):
    code, out, err = call(
        "prune", "--model", residual, "--dry_run", f"--target_flops={share}"
    )  # fmt: skip
    assert code == (3 if missed else 0), out + err
    assert ("The target would not be met" in out) == missed
    # A target ends no list of blocks or layers.
    assert {name for name, kind, *_ in LINE.findall(out) if kind != "units"} == {
        "sum_0", "sum_1", "wide_0", "wide_1", "hidden",
    }  # fmt: skip
