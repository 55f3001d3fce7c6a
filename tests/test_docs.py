"""What the pages say can be done: their Python runs, their commands parse, their links lead on."""

import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

pytestmark = pytest.mark.tensorflow  # no backend changes what a page says

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
PAGES = [*DOCS, "CONTRIBUTING.md", "CHANGELOG.md"]
SCRIPTS = [
    f"{folder}/{path.name}"
    for folder in ("benchmarks", "examples")
    for path in sorted((ROOT / folder).glob("*.py"))
]
DOORS = [
    *("keras_layer_entropy.analyze", "keras_layer_entropy.prune"),
    "keras_layer_entropy.differences",
]


def text(page):
    return (ROOT / page).read_text(encoding="utf-8")


def fences(page):
    """`(language, line, block)` of every fenced block."""
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text(page), re.MULTILINE | re.DOTALL)
    return [(m[1], text(page).count("\n", 0, m.start()) + 2, m[2]) for m in found]


def prose(page):
    """The page without its fenced blocks, line numbers kept."""
    return re.sub(
        r"^```.*?^```$", lambda m: "\n" * m[0].count("\n"), text(page), flags=re.M | re.DOTALL
    )


def indented(page):
    """The indented blocks: what stands behind four spaces and begins after an empty line."""
    blocks, lines = [], prose(page).splitlines()
    for before, line in zip(["", *lines], lines, strict=False):
        if line.startswith("    ") and not line[4:].startswith(" ") and not before.strip():
            blocks.append([line[4:]])
        elif line.startswith("    ") and before.startswith("    ") and blocks:
            blocks[-1].append(line[4:])
    return ["\n".join(block) for block in blocks]


def inline(page):
    """What stands between single backquotes in the prose; lines of indented blocks left out."""
    kept = "\n".join(x for x in prose(page).splitlines() if not x.startswith("    "))
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", kept)]


# Python


def python_blocks(page):
    return [(line, block) for language, line, block in fences(page) if language == "python"]


def setup():
    """What pages call your model and your data: a trained CNN on digits, with a stack of Dense.

    README makes what it uses, and is given none of this.
    """
    import keras

    from keras_layer_entropy.datasets import load_parts

    parts = load_parts("digits")
    (x, y), (xv, yv) = parts.train.arrays, parts.validation.arrays
    dense = [keras.layers.Dense(32, "relu", name=f"dense_{i}") for i in (1, 2, 3)]
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(6, 3, activation="relu", name="conv"),
            keras.layers.Flatten(name="flatten"),
            keras.Sequential(dense, name="block"),
            keras.layers.Dense(10, "softmax", name="output"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(x, y, verbose=0)
    return dict(model=model, x=x, y=y, xv=xv, yv=yv, data=(xv, yv))


@pytest.mark.slow
@pytest.mark.fits_once  # as a reader runs them
@pytest.mark.parametrize("page", [page for page in DOCS if python_blocks(page)])
def test_python_blocks_run_from_top_to_bottom(page, tmp_path, monkeypatch):
    import matplotlib

    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    namespace = {"__name__": "__main__"} | ({} if page == "README.md" else setup())
    for line, block in python_blocks(page):
        exec(compile("\n" * (line - 1) + block, ROOT / page, "exec"), namespace)


@pytest.mark.parametrize("page", DOCS)
def test_every_block_is_of_a_kind_that_is_tested(page):
    assert {language for language, _, _ in fences(page)} <= {"python"}
    for block in indented(page):
        python = re.search(r"^(from|import) \w|^\w[\w.\[\]\"]* = |^[\w.]+\(.*\)$", block, re.M)
        assert not python, f"Python belongs between ```python and ```:\n{block}"


# Commands


def commands(page):
    """Every command line of a page, in blocks and in the prose, as lists of words."""
    lines = "\n".join(indented(page)).replace("\\\n", " ").splitlines() + inline(page)
    starts = ("python ", "make ", "pip ")
    return [shlex.split(line, comments=True) for line in lines if line.startswith(starts)]


def with_flags(page):
    """The commands of a page that have flags of this project's own."""
    found = [words[1:] for words in commands(page) if words[0] == "python"]
    found = [words[1:] if words[0] == "-m" else words for words in found]
    # By its name, and without the two things that it compares.
    found = [
        ["keras_layer_entropy.differences", *words[4:]] if words[1:2] == ["compare"] else words
        for words in found
    ]
    return [words for words in found if words[0] in (*DOORS, *SCRIPTS)]


# Runs each command up to where its flags are parsed, config files and presets too, and prints what
# was wrong with it, or the names of its flags. Each has a fork of its own, for they share names.
PARSER = """
import contextlib, json, os, runpy, sys
import keras, tensorflow, keras_layer_entropy.pruning
from absl import app, flags

def parse(main, *args, **kwargs):
    rest = flags.FLAGS(sys.argv)
    sys.stdout.flush()
    print(json.dumps([str(rest[1:]) if rest[1:] else "", list(flags.FLAGS)]), file=answers)
    answers.flush()
    os._exit(0)

app.run, answers = parse, sys.stdout
for command in json.load(sys.stdin):
    sys.stdout.flush()
    if os.fork() == 0:
        sys.argv = command
        sys.path.insert(0, os.path.dirname(os.path.abspath(command[0])))
        try:
            run = runpy.run_path if command[0].endswith(".py") else runpy.run_module
            run(command[0], run_name="__main__")
            print(json.dumps(["reads no flags", []]))
        except BaseException as error:
            print(json.dumps([f"{type(error).__name__}: {error}", []]))
        sys.stdout.flush()
        os._exit(0)
    os.wait()
"""


@pytest.fixture(scope="module")
def parsed():
    """`{command as text: (what is wrong with it or "", names of its flags)}` for all pages."""
    wanted = [words for page in PAGES for words in with_flags(page) if len(words) > 1]
    wanted = [*([door] for door in DOORS), *wanted]
    process = subprocess.run(
        [sys.executable, "-c", PARSER],
        input=json.dumps(wanted),
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
    )
    assert process.returncode == 0, process.stderr
    answers = map(json.loads, process.stdout.splitlines())
    return {shlex.join(words): answer for words, answer in zip(wanted, answers, strict=True)}


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if with_flags(page)])
def test_commands_parse(page, parsed):
    for words in with_flags(page):
        if len(words) > 1:
            wrong, _ = parsed[shlex.join(words)]
            assert not wrong, f"{shlex.join(words)}: {wrong}"


@pytest.mark.parametrize("page", PAGES)
def test_flags_in_prose_exist(page, parsed):
    doors = DOORS[1:2] if page == "docs/pruning.md" else DOORS
    known = {name for door in doors for name in parsed[door][1]}
    for code in inline(page):
        if code.startswith("--"):
            name = code.removeprefix("--").split("=")[0].split()[0]
            assert name in known, f"{doors} have no flag {code}"


@pytest.mark.parametrize("page", PAGES)
def test_scripts_modules_and_targets_exist(page):
    targets = re.findall(r"^([\w-]+):", text("Makefile"), re.M)
    for words in commands(page):
        if words[0] == "make":
            assert words[1] in targets, f"make {words[1]}"
        elif words[0] == "python" and words[1] == "-m":
            module = ROOT / words[2].replace(".", "/")
            runs = module.with_suffix(".py").is_file() or (module / "__main__.py").is_file()
            assert words[2] == "pytest" or runs, words[2]
        elif words[0] == "python":
            assert (ROOT / words[1]).is_file(), words[1]
        # That the flag's file is missing shows only when a script looks into it.
        for name in re.findall(r"--config[= ](\S+?\.py)", " ".join(words)):
            assert (ROOT / name).is_file(), name
    own = r"(benchmarks|configs|docs|examples|keras_layer_entropy|tests)/[\w./-]+"
    for name in inline(page):
        if re.fullmatch(own, name):
            assert (ROOT / name).exists(), name


# Links


def anchors(page):
    """The anchors that GitHub gives to the headings of a page."""
    found = []
    for heading in re.findall(r"^#+ (.+)$", prose(page), re.M):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
    return found


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue  # the net is not looked at
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), f"{page} links to {target}"
        if anchor:
            assert anchor in anchors(path.relative_to(ROOT)), f"{page} links to {target}"
