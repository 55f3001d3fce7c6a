"""Where the bounds lie of what may be in a model file, and what names are looked up."""

import h5py
import keras
import numpy as np
import pytest
from keras import ops

from keras_layer_entropy.model_files import inspection
from keras_layer_entropy.model_files.inspection import (
    UnsafeModelError,
    check_size,
    inspect_assets,
    inspect_config,
    inspect_hdf5,
)

pytestmark = pytest.mark.tensorflow  # files are the same on every backend


class Own(keras.layers.Layer):
    """A layer of somebody's own."""


def nested(levels, wrap):
    value = {}
    for _ in range(levels):
        value = wrap(value)
    return value


@pytest.mark.parametrize(
    "wrap", [lambda value: {"config": value}, lambda value: [value]], ids=["dict", "list"]
)
def test_levels_of_a_configuration(wrap):
    inspect_config(nested(inspection._NESTING, wrap))
    with pytest.raises(UnsafeModelError, match="nested more than 100 levels deep"):
        inspect_config(nested(inspection._NESTING + 1, wrap))


def test_levels_of_an_hdf5_file(tmp_path):
    with h5py.File(tmp_path / "deep.h5", "w") as file:
        file.create_group("/".join("a" * inspection._NESTING))
        inspect_hdf5(file)
        file.create_group("/".join("a" * (inspection._NESTING + 1)))
        with pytest.raises(UnsafeModelError, match="nested more than 100 levels deep"):
            inspect_hdf5(file)


@pytest.mark.parametrize(
    "way",
    [{"compression": "gzip"}, {"shuffle": True}, {"fletcher32": True}, {"compression": "lzf"}],
    ids=str,
)
def test_known_compression(way, tmp_path):
    with h5py.File(tmp_path / "known.h5", "w") as file:
        file.create_dataset("weights", data=np.ones((8, 8)), chunks=(4, 4), **way)
        inspect_hdf5(file)
        # scale and offset, which h5py knows and Keras never writes
        file.create_dataset("other", data=np.ones((8, 8), "int32"), chunks=(4, 4), scaleoffset=2)
        with pytest.raises(UnsafeModelError, match="/other .* compressed in an unknown way"):
            inspect_hdf5(file)


@pytest.mark.parametrize("option", inspection._COUNTS)
def test_numbers_that_ask_for_memory(option):
    inspect_config({option: 2**24})
    with pytest.raises(UnsafeModelError, match=f"{option}=16777217 asks for too much"):
        inspect_config({option: 2**24 + 1})


# Under which names somebody gives a class or function, and what a configuration calls it.
GIVEN = {
    "as registered": ("pkg>Own", {"registered_name": "pkg>Own"}, True),
    "by its own name": ("Own", {}, True),
    "by its own name, registered as nothing": ("Own", {"registered_name": None}, True),
    "not at all": ("Other", {}, False),
    "by its own name, registered under another": ("Own", {"registered_name": "pkg>Own"}, False),
}


@pytest.mark.parametrize("kind", GIVEN)
@pytest.mark.parametrize("what", ["class", "function"])
def test_names_of_what_is_given(kind, what):
    given, more, opens = GIVEN[kind]
    config = (
        {"class_name": "Own", "module": "pkg", "config": {}, **more}
        if what == "class"
        else {"class_name": "function", "module": "pkg", "config": "own", **more}
    )
    given = "own" if (what, given) == ("function", "Own") else given
    if opens:
        inspect_config([config], {given: Own})
    else:
        with pytest.raises(UnsafeModelError, match="not registered|of your own"):
            inspect_config([config], {given: Own})


@pytest.mark.parametrize("more", [{}, {"registered_name": "pkg>Own"}])
def test_files_beside_a_layer_of_ones_own(more):
    config = {"class_name": "Own", "module": "pkg", "config": {}, **more}
    name = more.get("registered_name", "Own")
    inspect_assets(["assets/own/table.bin"], [config], {name: Own})
    for others in ({}, {"Other": Own}):
        with pytest.raises(UnsafeModelError, match="table.bin' in the archive does not belong"):
            inspect_assets(["assets/own/table.bin"], [config], others)
    inspect_assets(["assets/own/words.txt", "assets/", "assets/.DS_Store"], [config], {})


def test_weights_are_counted_before_any_is_made():
    """2^20 numbers may be declared whatever is stored, and 100 for each byte that is."""
    made = []

    def zeros(shape, dtype=None):
        made.append(shape)
        return ops.zeros(shape, dtype)

    def model():
        layer = keras.layers.Dense(2**10, kernel_initializer=zeros, use_bias=False)
        return keras.Sequential([keras.Input((2**10 + 100,)), layer])

    with pytest.raises(UnsafeModelError, match="needs 1,150,976 numbers.*file has 1,023"):
        check_size(model, 1023)
    check_size(model, 1024)
    assert not made


@pytest.mark.parametrize("text", ["nonsense", "", "{", b"\xff\xfe", "[1]", "3"])
def test_what_is_no_configuration(text):
    with pytest.raises(ValueError, match=r"^config.json is (not JSON|no configuration)"):
        inspection.parsed(text, "config.json")


@pytest.mark.parametrize("option", ["vocabulary", "idf_weights", "filepath"])
def test_options_that_are_files_are_refused(option):
    config = {"class_name": "StringLookup", "config": {"name": "words", option: "/etc/passwd"}}
    with pytest.raises(inspection.UnsafeNameError, match=f"{option}='/etc/passwd' is a file"):
        inspect_config(config)
    config["config"][option] = ["a", "b"]
    inspect_config(config)


def test_weights_that_are_nearly_all_zeros_may_be_small_in_a_file(tmp_path):
    """As those of a pruned network, up to 128 MiB."""
    with h5py.File(tmp_path / "zeros.h5", "w") as file:
        file.create_dataset("weights", shape=(2**22,), dtype="float32", compression="gzip",
                            chunks=True)[:] = 0  # fmt: skip
    assert (tmp_path / "zeros.h5").stat().st_size < 2**18
    with h5py.File(tmp_path / "zeros.h5") as file:
        inspect_hdf5(file)
