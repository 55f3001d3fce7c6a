"""The house stands as CONTRIBUTING.md says: who imports whom, and who leans on Keras's inside."""

import ast
import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "keras_layer_entropy"
NAME = PACKAGE.name
# Documented, whatever their names say.
PUBLIC = {"_replace", "_asdict", "_fields", "_getframe"}


def sources(folder=PACKAGE):
    """Path from the folder -> syntax tree of every file in it."""
    return {
        str(path.relative_to(folder)): ast.parse(path.read_text())
        for path in sorted(folder.rglob("*.py"))
    }


def imported(tree, files):
    """The files of the package that one imports, also inside functions."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {file_of(alias.name, files) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            whole = file_of(node.module, files)
            found |= {file_of(f"{node.module}.{x.name}", files) or whole for x in node.names}
    return found - {None}


def file_of(module, files):
    """Where a module of the package stands; None for any other."""
    if module.split(".")[0] != NAME:
        return None
    path = "/".join(module.split(".")[1:])
    places = (f"{path}.py", f"{path}/__init__.py".lstrip("/"))
    return next((place for place in places if place in files), None)


def climbing(files, floors):
    """The imports that do not go down: `(file, what it imports)`.

    What a package's `__init__` re-exports stands as high as the highest of it.
    """
    return sorted(
        (file, other)
        for file, tree in files.items()
        if not file.endswith("__init__.py")
        for other in imported(tree, files)
        if floor_of(other, files, floors) >= floors[file]
    )


def floor_of(file, files, floors):
    if not file.endswith("__init__.py"):
        return floors[file]
    inside = imported(files[file], files) - {file}
    return max((floor_of(other, files, floors) for other in inside), default=())


def circle(files):
    """Files that import one another in a ring, or nothing."""
    edges = {file: imported(tree, files) for file, tree in files.items()}
    done = set()

    def follow(file, path):
        if file in path:
            return path[path.index(file) :]
        if file in done:
            return None
        rings = (follow(other, [*path, file]) for other in sorted(edges[file]))
        ring = next((ring for ring in rings if ring), None)
        done.add(file)
        return ring

    return next((ring for file in files if (ring := follow(file, []))), None)


def leanings(files):
    """Path -> what of Keras's inside a file leans on: modules, and attributes with an underscore.

    An underscore that is given in the same file is its own.
    """
    found = {file: inside(tree) - given(tree) - PUBLIC for file, tree in files.items()}
    return {file: names for file, names in found.items() if names}


def inside(tree):
    """The names out of `keras.src`, and all that begin with an underscore, also in `getattr`."""
    modules, names, parts_of_texts = set(), set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("keras.src"):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.JoinedStr):
            parts_of_texts |= set(map(id, node.values))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("suffix", "with")):
            parts_of_texts |= set(map(id, node.args))
        elif isinstance(node, ast.Constant) and id(node) not in parts_of_texts:
            names.add(str(node.value))
    return modules | {name for name in names if re.fullmatch("_[a-z][a-z_]*", name)}


def given(tree):
    """The names that a file gives to functions, classes, fields and attributes of `self`."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr if ast.unparse(node.value) == "self" else None)
    return names


def table(title):
    """The rows of the table under a heading of CONTRIBUTING.md, as lists of cells."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    section = text.split(f"\n## {title}\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


@pytest.fixture(scope="module")
def files():
    return sources()


def test_every_file_stands_on_a_floor(files):
    rows = [(re.findall(r"`([^`]+)`", row[1])[0], row) for row in table("The house")]
    assert sorted(name for name, _ in rows) == sorted(f for f in files if "__init__" not in f)
    assert all(row[2] for _, row in rows)  # and is described


def test_imports_go_down(files):
    floors = {row[1].strip("`"): tuple(map(int, row[0].split("."))) for row in table("The house")}
    assert climbing(files, floors) == []


def test_there_is_no_circle(files):
    assert circle(files) is None


def test_the_root_holds_doors_and_folders_alone(files):
    doors = {
        "__main__.py",
        "analyze.py",
        "prune.py",
        "differences.py",
        "command_line.py",
        "beam.py",
    }
    cellar = {"backend.py", "datasets.py", "files.py", "quiet.py", "version.py"}
    assert {file for file in files if "/" not in file} == {"__init__.py"} | doors | cellar


def test_who_leans_on_keras_inside_is_listed(files):
    listed = {
        row[0].strip("`"): set(re.findall(r"`([^`]+)`", row[1]))
        for row in table("Where this leans on Keras's inside")
    }
    assert listed == leanings(files)


def test_backends_are_asked_in_one_place(files):
    asked = {
        file
        for file, tree in files.items()
        if "keras.backend.backend"
        in {ast.unparse(n) for n in ast.walk(tree) if type(n) is ast.Attribute}
    }
    assert asked == {"backend.py"}


def test_what_is_made_once_cannot_be_changed(files):
    """All dataclasses are frozen, but for what fills up while a forward pass is recorded."""
    found = {}
    for tree in files.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                ways = " ".join(map(ast.unparse, node.decorator_list))
                found |= {node.name: ways} if "dataclass" in ways else {}
    assert [name for name, ways in found.items() if "frozen=True" not in ways] == ["Activation"]


def package(folder, **texts):
    """A package of these files, as `sources` gives it."""
    for name, text in texts.items():
        (folder / f"{name}.py").write_text(text)
    return sources(folder)


def test_what_climbs_inside_a_function_is_seen(tmp_path):
    low = f"def later():\n    from {NAME} import high\n    return high\n"
    files = package(tmp_path, low=low, high="")
    assert climbing(files, {"low.py": (1,), "high.py": (2,)}) == [("low.py", "high.py")]
    assert climbing(files, {"low.py": (2,), "high.py": (1,)}) == []
    assert climbing(files, {"low.py": (1,), "high.py": (1,)}) == [("low.py", "high.py")]


def test_a_circle_of_three_is_seen(tmp_path):
    ring = {"a": "b", "b": "c", "c": "a"}
    texts = {x: f"from {NAME}.{y} import something" for x, y in ring.items()}
    assert sorted(circle(package(tmp_path, **texts))) == ["a.py", "b.py", "c.py"]
    assert circle(package(tmp_path, **texts | {"c": ""})) is None


def test_an_underscore_of_keras_is_seen(tmp_path):
    text = (
        "class A:\n    def f(self, layer):\n        self._mine = 1\n        return layer._losses\n"
    )
    other = "from keras.src.ops.node import Node\ndef g(a):\n    return getattr(a, '_built')\n"
    files = package(tmp_path, one=text, other=other, neither="def f(a):\n    a._asdict()\n")
    assert leanings(files) == {"one.py": {"_losses"}, "other.py": {"Node", "_built"}}


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_another_backend_does_not_import_tensorflow(backend):
    """Keras does where it writes a configuration, and is not asked to by an import."""
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    code = (
        "import sys, keras_layer_entropy, keras_layer_entropy.analyze, keras_layer_entropy.prune\n"
        f"print('tensorflow' in sys.modules, {backend!r} in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env=os.environ | {"KERAS_BACKEND": backend, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.stdout.split() == ["False", "True"]
