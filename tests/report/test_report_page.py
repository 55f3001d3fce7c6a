"""The HTML report in a real browser: nothing from outside, no error, sorting, patterns."""

import importlib.resources
import json
import shutil

import numpy as np
import pytest
from profiles import make, with_patterns

from keras_layer_entropy import compare, report
from keras_layer_entropy.measures import ActivationEntropy
from keras_layer_entropy.pruning import (
    Cost,
    PruningOptions,
    PruningResult,
    PruningStep,
    Quality,
)

CHROMIUM, DRIVER = (
    next(filter(None, map(shutil.which, names)), None)
    for names in (("chromium", "chromium-browser", "google-chrome"), ("chromedriver",))
)
pytestmark = [
    pytest.mark.tensorflow,  # the page is the same on every backend
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="no Chromium and chromedriver are installed"
    ),
]
EVIL = "<script>document.title='broken'</script><img src=x>$\\frac{"


def with_random_patterns(seed=0, **changes):
    """A profile of layers a, b, c, out and classes x, y (without samples), z, with patterns."""
    profile = make(**changes)
    random = np.random.default_rng(seed)
    patterns = {
        layer: random.dirichlet(np.ones(n), len(profile.classes))
        for layer, n in zip(profile.layers, profile.widths, strict=True)
    }
    for pattern in patterns.values():
        pattern[1] = np.nan
    return with_patterns(patterns, **changes)


@pytest.fixture(scope="module")
def browser():
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--window-size=1100,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def show(browser, tmp_path):
    """Writes a report, opens it, and at the end looks at what the browser has to complain of."""
    from selenium.webdriver.common.by import By

    path = tmp_path / "report.html"
    for log in ("browser", "performance"):
        browser.get_log(log)  # what an earlier test left

    def show(profile, **options):
        report.write_report(path, profile, **options)
        browser.get(path.as_uri())
        return lambda selector: browser.find_elements(By.CSS_SELECTOR, selector)

    yield show
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"].endswith("WillBeSent")]
    assert path.as_uri() in asked
    assert [url for url in asked if url != path.as_uri() and not url.startswith("data:")] == []


def column(find, number):
    return [row.text for row in find(f"table.sortable tbody td:nth-child({number})")]


def test_what_was_measured_and_the_verdict(show):
    settings = {"data": "digits, split test", "command": "python -m x --y=1", "model": "my_net"}
    find = show(with_random_patterns(settings=settings))
    assert find("h1")[0].text == "Layer entropy of my_net"
    assert "Entropy rises over c: 0.800 in a, 0.150 in out." in find("#verdict")[0].text
    facts = find("dl.facts")[0].text
    assert "digits, split test" in facts
    assert "12 of 2 classes; none of y" in facts
    assert find("pre")[-1].text == "python -m x --y=1"
    assert find(".curve svg text")
    # The caveats of just the measures that were taken.
    assert [x.text for x in find("dl.words dt code")] == ["activation_entropy", "state_entropy"]


def test_tables_sort(show):
    find = show(with_random_patterns())
    assert column(find, 1) == ["a", "b", "c", "out"]
    mean = find("th[scope=col]")[2]
    button = find("th button")[2]
    button.click()
    assert column(find, 3) == ["0.150", "0.797", "0.800", "0.875"]
    assert mean.get_attribute("aria-sort") == "ascending"
    button.click()
    assert column(find, 1) == ["c", "a", "b", "out"]
    find("th button")[5].send_keys("\n")  # the gradient, by keyboard; the first layer has none
    assert column(find, 6) == ["-0.078", "+0.003", "+0.725", "-"]
    assert mean.get_attribute("aria-sort") == "none"
    find("th button")[5].click()
    assert column(find, 6) == ["+0.725", "+0.003", "-0.078", "-"]


def test_numbers_tell_more_when_pointed_at(show):
    both = dict.fromkeys(("activation_entropy", "state_entropy"), np.full((4, 3), 0.9))
    find = show(with_random_patterns(baseline=make(results=both)))
    cells = find("tbody tr:nth-child(2) td")
    texts = ["b", "4", "0.797", "0.695 (z)", "0.900 (x)", "+0.003", "flat", "0.900", "0.500"]
    assert [cell.text for cell in cells] == texts
    assert [cell.get_attribute("title") for cell in cells[2:]] == [
        "0.797500, 1.1056 nats, mean of 2 classes",  # times ln 4
        "0.695000, class z, 7 samples",
        "0.900000, class x, 5 samples",
        "+0.002500, the layer before, minus this one",
        "",
        "0.900000, -0.1025 by training",
        "0.500000, bits",
    ]


def test_a_click_on_a_layer_shows_its_patterns(show, browser):
    profile = with_random_patterns()
    find = show(profile)

    def lines():
        return [path.get_attribute("d") for path in find("path.pattern")]

    assert find(".patterns .name")[0].text == "a (4 neurons)"
    before = lines()  # of the first two classes that have samples
    assert [line.count("H") for line in before] == [4, 4]
    assert [s.get_attribute("value") for s in find("select")] == ["0", "2"]
    find("button.layer")[3].click()
    assert find(".patterns .name")[0].text == "out (3 neurons)"
    assert lines()[0].count("H") == 3
    assert find("tr[aria-current=true]")[0].get_attribute("data-row") == "3"
    find("button.layer")[0].send_keys("\n")
    assert lines() == before
    assert find("option[value='1']")[1].text == "y (no samples)"
    find("option[value='1']")[1].click()
    assert lines()[0] == before[0]
    assert "H" not in lines()[1]
    find("option[value='2']")[1].click()
    # The height of each step is the neuron's probability.
    heights = [part.split("H")[0] for part in lines()[1].split("V")[1:-1]]
    top = np.array(heights, float)
    bottom = float(before[0].split("V")[-1])
    share = (bottom - top) / (bottom - top).sum()
    np.testing.assert_allclose(share, profile.patterns["a"][2], atol=1e-5)  # float32 pixels


def test_arrow_keys_tell_every_probability(show, browser):
    from selenium.webdriver import Keys

    profile = with_random_patterns()
    find = show(profile)
    canvas = find("canvas")[0]
    canvas.send_keys(Keys.ARROW_DOWN)
    assert "class y, neuron 0: no samples" in find("output")[0].text
    canvas.send_keys(Keys.ARROW_DOWN, Keys.ARROW_RIGHT)
    p = profile.patterns["a"][2, 1]
    assert f"class z, neuron 1: probability {p:.4f}, {4 * p:.3g}" in find("output")[0].text
    read = "return [...arguments[0].getContext('2d').getImageData(0, 0, 4, 3).data]"
    colors = np.reshape(browser.execute_script(read, canvas), (3, 4, 4))
    brightest = np.unravel_index(np.nanargmax(profile.patterns["a"]), (3, 4))
    assert colors[brightest].tolist() == [253, 231, 55, 255]
    assert (colors[1, :, 3] < 255).all()  # class y has no samples


def test_names_are_text(show, browser):
    layers = ["a", "_b", f"c{EVIL}", "out\x00"]
    classes = ("x", EVIL, "z\x00")
    profile = with_random_patterns(
        layers=layers, classes=classes, settings={"model": EVIL, "data": EVIL}
    )
    find = show(profile, history=[make(layers=layers, epoch=i) for i in range(2)])
    assert browser.title == f"Layer entropy of {EVIL}"
    assert find("button.layer")[2].text == f"c{EVIL}"
    # Figures cut what is long, and keep its end.
    assert any(EVIL[-8:] in text.text for text in find("svg text"))
    assert not find("img")
    find("button.layer")[2].click()
    assert find(".patterns .name")[0].text == f"c{EVIL} (4 neurons)"
    find("button.layer")[3].click()
    assert find(".patterns .name")[0].text.endswith("(3 neurons)")
    assert [item.get_attribute("title") for item in find(".strip li")][1] == EVIL


def test_a_phone_shows_it_without_scrolling_sideways(show, browser):
    find = show(with_random_patterns(layers=["x" * 60, "b", "c", "out"]))
    metrics = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        width = browser.execute_script("return document.documentElement.scrollWidth")
        assert width == 390
        assert find("svg.lines")[0].size["width"] < 390
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_light_dark_and_paper(show, browser):
    find = show(with_random_patterns())

    def ground(**media):
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        color = find("body")[0].value_of_css_property("background-color")
        return sum(map(int, color[color.index("(") + 1 : -1].split(",")[:3])) / 3

    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    try:
        assert ground(features=[]) == 255
        assert ground(features=dark) < 40
        assert ground(media="print", features=dark) == 255
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})


@pytest.fixture(params=[("light", 1100), ("dark", 1100), ("light", 390)], ids=str)
def broken(request, browser):
    """What the rules of axe-core (contrast, names, headings, keyboard) say of the open page."""
    rules = importlib.resources.files("axe_core_python").joinpath("axe.min.js").read_text()
    scheme, width = request.param
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)

    def broken():
        browser.execute_script(rules)
        found = browser.execute_async_script("axe.run().then(arguments[0])")
        assert len(found["passes"]) > 10  # it has looked
        return [(x["id"], [node["html"] for node in x["nodes"]]) for x in found["violations"]]

    yield broken
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})


@pytest.mark.slow
def test_everybody_can_use_the_report(show, broken):
    show(with_random_patterns(), history=[make(epoch=0), make(epoch=1)])
    assert broken() == []
    pruning = search((step(), step(part="c", accepted=False)))
    show(pruning.result.before, pruning=pruning, overwrite=True)
    assert broken() == []


def test_everybody_can_use_a_comparison(browser, broken, tmp_path):
    compare(make(), make(epoch=4)).report(tmp_path / "comparison.html")
    browser.get((tmp_path / "comparison.html").as_uri())
    assert broken() == []


def test_a_neuron_stands_above_its_column(show, browser):
    find = show(with_random_patterns(classes=("x" * 30, "y", "z")))
    # The first corner of the path and the left edge of the strip, both in pixels of the page.
    start = float(find("path.pattern")[0].get_attribute("d")[1:].split()[0])
    left = find("svg.lines")[0].rect["x"] + start
    assert left == pytest.approx(find("canvas")[0].rect["x"], abs=1)


def test_a_layer_of_one_unit_has_two_states(show):
    profile = with_patterns(
        {"a": [[0.25, 0.75]]}, layers=("a",), widths=(1,), is_output=(True,), classes=("all",),
        count=[5], results={"activation_entropy": [[0.5]]},
    )  # fmt: skip
    find = show(profile)
    assert find(".patterns .name")[0].text == "a (1 neuron, as two states)"
    find("canvas")[0].send_keys("\ue014")  # arrow right
    assert find("output")[0].text == "class all, state 1: probability 0.7500, 1.50 times uniform"
    assert "samples\n5\n" in find("dl.facts")[0].text


def test_many_classes_and_wide_layers(show):
    random = np.random.default_rng(0)
    profile = with_patterns(
        {"a": random.dirichlet(np.ones(20_000), 60)}, layers=("a",), widths=(20_000,),
        is_output=(True,), classes=[f"c{i}" for i in range(60)], count=np.ones(60),
        results={"activation_entropy": np.full((1, 60), 0.5)},
    )  # fmt: skip
    find = show(profile)
    canvas = find("canvas")[0]
    assert int(canvas.get_attribute("width")) == 6667  # three neurons each
    assert canvas.size["height"] <= 640
    assert "10 more classes are left out" in find(".patterns")[0].text  # a million numbers


def test_other_readings_are_described(show):
    measure = ActivationEntropy("per_sample", "none")
    find = show(make(measures={"activation_entropy": measure}, baseline=make()))
    text = find("main")[0].text
    assert "mean of the entropies of the samples of one class, in nats" in text
    assert "keep_patterns" not in text
    words = "[ActivationEntropy(pattern='per_sample', normalization='none'), 'state_entropy']"
    command = find("pre")[-1].text
    assert command.startswith("from keras_layer_entropy.measures import ActivationEntropy\n")
    assert f"analyze_model(model, data, measures={words}, baseline=True)" in command


def test_a_large_profile_leaves_classes_out_and_says_so(show, monkeypatch):
    monkeypatch.setattr(report.page, "_MOST_PATTERNS", 32)  # 15 for each class
    find = show(with_random_patterns())
    assert len(find(".strip li")) == 2
    assert "1 more classes are left out" in find(".patterns")[0].text


def test_without_patterns_and_twin_it_says_how_to_get_them(show):
    find = show(make())
    text = find("main")[0].text
    assert "keep_patterns=True" in text
    assert "baseline=True" in text
    assert not find("canvas")
    assert not find("button.layer")


def step(**changes):
    values = dict(
        kind="layer", part="b", members=(), criterion="linearity", score=0.1, reason="it is linear",
        accepted=True, standard_error=0.01234,
        quality_before=0.9, quality_removed=0.85, quality_retrained=0.91, residual=0.1,
        parameters=100, entropy={}, seconds=1.25,
    )  # fmt: skip
    return PruningStep(**values | changes)


def search(steps, **changes):
    after = make(
        layers=("a", "c", "out"),
        widths=(4, 4, 3),
        is_output=(False, False, True),
        results={"activation_entropy": np.full((3, 3), 0.5)},
    )
    reasons, quality = {"out": "it is output"}, Quality(**changes)
    result = PruningResult(
        None, steps, make(), after, reasons, PruningOptions("linearity"), quality
    )
    costs = (Cost(4, 1000, 2000, {1: 1.0}), Cost(3, 750, 1500, {1: 0.5}))
    qualities = {"validation": (0.9, 0.91), "test": (0.88, 0.87)}
    return report.Pruning(result, costs, qualities)


def test_pruning(show):
    steps = (step(), step(part="c", accepted=False, quality_retrained=0.5))
    pruning = search(steps)
    assert pruning.points == [
        (0, 0.9, "original"),
        (1, 0.85, "right after removal"),
        (1, 0.91, "after retraining"),
        (2, 0.5, "rolled back"),
    ]
    find = show(pruning.result.before, pruning=pruning)
    words = "1 of 4 Dense layers went (b); FLOPs -25%, parameters -25%. Validation accuracy 0.9000"
    assert find("#pruning-verdict")[0].text.startswith(words)
    assert "0.9100 after (± 0.0123 of the difference); test" in find("#pruning-verdict")[0].text
    # The original, and each of two steps right after it and after each of five epochs.
    assert "data 13 times" in find("section:first-child .note")[0].text
    assert [section.get_attribute("data-key") for section in find(".network")] == [
        "before",
        "after",
    ]
    rows = [row.text for row in find("section:first-child table.sortable tbody tr")]
    assert rows[0] == "1 b removed 0.9000 0.8500 0.9100 0.0123 1.2 it is linear"
    assert rows[1].startswith("2 c rolled back 0.9000 0.8500 0.5000")
    assert "0.8900" in find("section:first-child .note")[0].text  # 0.9 - 0.01, the limit
    costs = [
        row.text for row in find("section:first-child table")[0].find_elements("tag name", "tr")
    ]
    assert costs[1:3] == ["Dense layers 4 3 0.75", "parameters 1,000 750 0.75"]
    assert costs[-1] == "test accuracy 0.8800 0.8700 -0.0100"


def test_pruning_by_a_loss_speaks_of_the_loss(show):
    steps = (step(), step(part="c", accepted=False, quality_retrained=1234.5))
    pruning = search(steps, name="loss", higher=False, drop=0.1, relative=True)
    find = show(pruning.result.before, pruning=pruning)
    assert "Validation loss 0.9000 before, 0.9100 after" in find("#pruning-verdict")[0].text
    note = find("section:first-child .note")[0].text
    assert "where validation loss, after retraining, was at most 0.9900" in note
    heads = [x.text for x in find("section:first-child table.sortable th")]
    assert "loss before" in " ".join(heads)
    rows = [row.text for row in find("section:first-child table.sortable tbody tr")]
    assert rows[1].startswith("2 c rolled back 0.9000 0.8500 1234")
    costs = find("section:first-child table")[0].find_elements("tag name", "tr")
    assert costs[-1].text == "test loss 0.8800 0.8700 -0.01"
    assert "accuracy" not in find("section:first-child")[0].text
    axes = pruning.figure().axes[1]
    assert (axes.get_ylabel(), axes.get_title(loc="left")) == (
        *("validation loss", "Loss as layers went"),
    )
    assert axes.lines[-1].get_ydata()[0] == pytest.approx(0.99)


def test_pruning_that_took_nothing_out(show):
    find = show(make(), pruning=search(()))
    assert find("#pruning-verdict")[0].text == (
        "No layers were taken out: there are none that may go; out: it is output."
    )
