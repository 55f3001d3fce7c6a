"""What classes are called: as the user says, or the data, or by their numbers."""

import keras
import numpy as np
import pytest

from keras_layer_entropy import EntropyMonitor, analyze_model, analyze_units

NAMES = ("cat", "dog", "eel")


def network(channels=1):
    return keras.Sequential(
        [
            keras.Input((8, 8, channels)),
            keras.layers.Conv2D(4, 3, activation="relu", name="conv"),
            keras.layers.Flatten(),
            keras.layers.Dense(3, "softmax", name="out"),
        ]
    )


@pytest.fixture
def data(random):
    return random.normal(size=(30, 8, 8, 1)).astype("float32"), np.arange(30) % 3


def test_as_the_user_says(data):
    assert analyze_model(network(), data, classes=NAMES, verbose=0).classes == NAMES
    assert analyze_model(network(), data, verbose=0).classes == ("0", "1", "2")
    assert analyze_units(network(), data, classes=NAMES, verbose=0)[0].classes == NAMES
    twin = analyze_model(network(), data, classes=list(NAMES), baseline=True, verbose=0).baseline
    assert twin.classes == NAMES


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (NAMES[:2], "classes names 2 classes, cat and dog; the model and the data have 3"),
        ("cat", "classes='cat'; expected the names of the classes"),
        ((1, 2, 3), "expected the names of the classes"),
    ],
)
def test_what_is_refused(classes, words, data):
    with pytest.raises(ValueError, match=words):
        analyze_model(network(), data, classes=classes, verbose=0)


def test_in_fit(data):
    model = network()
    model.compile("adam", "sparse_categorical_crossentropy")
    monitor = EntropyMonitor(data=data, classes=NAMES)
    model.fit(*data, verbose=0, callbacks=[monitor])
    assert monitor.profiles[0].classes == NAMES


@pytest.mark.tensorflow
def test_as_a_folder_of_images_says(tmp_path, random):
    for name in NAMES:
        (tmp_path / name).mkdir()
        for number in range(4):
            picture = random.integers(0, 255, (8, 8, 3)).astype("uint8")
            keras.utils.save_img(tmp_path / name / f"{number}.png", picture)
    images = keras.utils.image_dataset_from_directory(tmp_path, image_size=(8, 8), verbose=0)
    assert analyze_model(network(3), images, verbose=0).classes == NAMES
    assert analyze_model(network(3), images, classes=list("abc"), verbose=0).classes == tuple("abc")
