"""What could go, in lines and on a page."""

import html
import pathlib
import re

import pytest
from profiles import make

from keras_layer_entropy import report
from keras_layer_entropy.pruning import Cost, Part, Plan, Prediction
from keras_layer_entropy.report.plan import plan_rows

pytestmark = pytest.mark.tensorflow  # words are the same on every backend


def a_plan(**changes):
    parts = (
        Part(kind="block", path="stage/sum_1", saves=Cost(1, 250, 2000, {256: 3.0})),
        Part(kind="layer", path="b", saves=Cost(1, 20, None, {256: 0.0})),
        Part(
            kind="unit", path="[c]", indices=(0, 3), members=("tied",),
            saves=Cost(0, 1, 10, {256: 1.5}),
        ),
    )  # fmt: skip
    said = (
        Prediction(0.031, "outputs change by 3.1% with a Dense layer instead", 0.031),
        Prediction(0.2, "entropy is flat"),
        Prediction(0.01, "2 of 5 units", 0.1),
    )
    whole = Cost(3, 1000, 8000, {256: 12.0})
    return Plan(parts, said, {"out": "it is an <output> layer"}, (whole,), **changes)


def test_a_line_for_each_part_says_what_it_saves_and_what_it_costs():
    head, *lines = report.plan_lines(a_plan())
    cells = [re.split(r"\s{2,}", line.strip()) for line in lines]
    assert cells == [
        ["1. stage/sum_1 (block)", "250", "25.0%", "25.0%", "25.0%", "3.1%",
         "with a Dense layer instead"],
        ["2. b (layer)", "20", "2.0%", "-", "0.0%", "-", "entropy is flat"],
        ["3. [c] (units)", "1", "0.1%", "0.1%", "12.5%", "10.0%", "2 of 5 units; with tied"],
    ]  # fmt: skip
    # Numbers stand below one another, and below the words that say what they are.
    for word in ("FLOPs", "time", "outputs change by"):
        end = head.index(word) + len(word)
        assert {line[end - 1] for line in lines} <= {"%", "-"}
        assert {line[end] for line in lines} == {" "}
    assert report.plan_lines(Plan(costs=(Cost(1, 1, 1, {}),))) == []


def test_shares_are_those_of_the_network():
    rows = plan_rows(a_plan())
    assert [row.saved["latency"] for row in rows] == [3 / 12, 0.0, 1.5 / 12]
    assert [row.saved["parameters"] for row in rows] == [0.25, 0.02, 0.001]


def test_the_page_holds_every_part_and_every_reason(tmp_path):
    path = report.write_report(tmp_path / "plan.html", make(), plan=a_plan())
    page = pathlib.Path(path).read_text()
    assert "1 block, 1 layer and 1 group of units can go" in page
    section = page[page.index('<section id="plan">') :]
    section = section[: section.index("</section>")]
    section = section.replace("<wbr>", "")
    for row in plan_rows(a_plan()):
        assert re.search(rf">{re.escape(row.name)}<.*?{re.escape(row.words)}", section, re.DOTALL)
    assert section.count("<tr>") == 1 + 3
    assert "it is an &lt;output&gt; layer" in section
    figure = section[section.index("<svg") : section.index("</svg>")]
    assert "FLOPs saved" in figure
    assert "time saved" in figure
    assert "stage/sum_1" in html.unescape(figure)


def test_a_page_of_a_plan_without_parts_says_so(tmp_path):
    plan = Plan(reasons={"out": "why"}, costs=(Cost(1, 1, 1, {}),))
    page = pathlib.Path(report.write_report(tmp_path / "plan.html", make(), plan=plan)).read_text()
    assert "Nothing can go." in page
    assert "why" in page


def test_a_page_without_a_plan_has_no_such_section(tmp_path):
    page = pathlib.Path(report.write_report(tmp_path / "page.html", make())).read_text()
    assert 'id="plan"' not in page
