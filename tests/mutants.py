"""Which small faults in the code would no test notice?

    make mutants

Draws places in the code at random, and at each one of the mutations that Cosmic Ray knows there
(another operator, comparison or number, a flag turned, a loop that is not run ...). First all tests
run once, and coverage tells which of them go through which line. Then each mutant is tested in a
copy of the project by tests that go through its line, and by those of its file (coverage does not
see what a compiled graph runs), up to the first that fails. Those that survive are shown; those of
`EQUIVALENT` change nothing that anybody could notice, and are not drawn.
"""

import collections
import concurrent.futures
import functools
import itertools
import os
import pathlib
import queue
import random
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree

import coverage
from absl import app, flags
from cosmic_ray import plugins
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code

_COUNT = flags.DEFINE_integer("count", 100, "How many mutants to draw.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Other seeds draw others.")
_WORKERS = flags.DEFINE_integer("workers", os.cpu_count(), "Mutants at a time.", lower_bound=1)

ROOT = pathlib.Path(__file__).parents[1]
SOURCES = (
    *("measures/**/*.py", "recording/labels.py", "recording/passes.py", "pruning/**/*.py"),
    "model_files/inspection.py",
)
HOUSE = "tests/test_house.py"  # looks at every file
MOST = 150  # seconds of tests for a mutant: what none of these notices has survived
TIMEOUT = 3 * MOST  # a mutant that takes longer has been noticed
# What a line becomes, by file: why nobody could notice it.
EQUIVALENT = {
    (
        "keras_layer_entropy/recording/passes.py",
        'type(part).__name__ is "TensorSpec" and None not in tuple(part.shape)[1:]',
    ): "names of classes are one object for each text",
    (
        "keras_layer_entropy/measures/births.py",
        "some = max(1, TIED_BYTES // (4 ^ _words(m) * m * (m - 1) // 2))",
    ): "it says how many maps are taken up at a time, and no more",
    (
        "keras_layer_entropy/measures/births.py",
        'vertices = np.arange(weights.shape[+1], dtype="int32")',
    ): "weights have two axes",
    (
        "keras_layer_entropy/measures/births.py",
        "seen = min(limit + 2, edges.shape[1])",
    ): "one edge more is beyond the limit",
    (
        "keras_layer_entropy/measures/unit_information.py",
        "found = in_blocks(rows, values.shape[1], values.shape[ 0] * bins * bins)",
    ): "it says how many units are compared at a time, and no more",
    (
        "keras_layer_entropy/measures/unit_information.py",
        "weight = ops.sum(membership, axis=1)",
    ): "membership has two axes",
    (
        "keras_layer_entropy/measures/kept_samples.py",
        "kept = ops.convert_to_numpy(self._priority) > 1",
    ): "one hash in 2^31 is 1",
    (
        "keras_layer_entropy/measures/logdet.py",
        "if len(x.shape) > 2 or len(membership.shape) != 2 or x.shape[0] != membership.shape[0]:",
    ): "fewer than two axes were refused before",
    (
        "keras_layer_entropy/measures/mutual_information.py",
        "return np.full(( 2, membership.shape[-1]), np.nan)",
    ): "any number of symbols that are NaN says the same",
    (
        "keras_layer_entropy/measures/births.py",
        'return ops.zeros_like(weights[:, 0], dtype="int32") - vertices',
    ): "labels of components need only differ from one another",
    (
        "keras_layer_entropy/measures/births.py",
        "return ops.while_loop(lambda start, _: start < waiting, take_up, ( -1, births))[1]",
    ): "the last map is taken up first, and once more in its turn: it comes out the same",
    (
        "keras_layer_entropy/measures/mutual_information.py",
        "table = np.zeros((len(symbols), membership.shape[+1]))",
    ): "membership has two axes",
    (
        "keras_layer_entropy/measures/mutual_information.py",
        "return np.full((1, membership.shape[+1]), np.nan)",
    ): "membership has two axes",
    (
        "keras_layer_entropy/measures/mutual_information.py",
        "if not 0 < variance != math.inf:",
    ): "nothing is larger than infinity",
    (
        "keras_layer_entropy/measures/unit_information.py",
        "of_bins, ops.sum(some, axis=-1), ops.sum(inside, axis=1), samples",
    ): "there are two axes",
    (
        "keras_layer_entropy/measures/unit_information.py",
        "parts = np.array_split(maps, min(len(maps), -(-maps.size << _BLOCK)))",
    ): "it says how many units are compared at a time, and no more",
    (
        "keras_layer_entropy/pruning/cost.py",
        "for i, median in enumerate(np.median(times[ 1:], axis=0)):",
    ): "one warm-up more or less is no other median",
    (
        "keras_layer_entropy/measures/entropy.py",
        'if self.options["pattern"] <= "mean_then_softmax":',
    ): "of the names of patterns it comes first",
    (
        "keras_layer_entropy/measures/births.py",
        "some = max(1, TIED_BYTES // (4 * _words(m) * m - (m - 1) // 2))",
    ): "it says how many maps are taken up at a time, and no more",
    (
        "keras_layer_entropy/measures/births.py",
        "rank = ops.take(by_step[2], ops.minimum(step, seen - 2), axis=0)",
    ): "the last step is looked at once more, in which no rank counts that is beyond the limit",
    (
        "keras_layer_entropy/measures/births.py",
        "births = ops.where(rank[:, 0] > limit, 0, - 2)",
    ): "any number below 0 says that a birth is not known yet",
    (
        "keras_layer_entropy/pruning/layer_parts.py",
        "tensor = graph.calls_of(part.members[-1])[0].outputs[ -1]",
    ): "the members of a part have one output",
    (
        "keras_layer_entropy/pruning/layer_parts.py",
        "input_shape=tuple(graph.shapes[call.inputs[ -1]]),",
    ): "a Dense layer has one input",
    (
        "keras_layer_entropy/pruning/layer_parts.py",
        "if sum(isinstance(call.operation, keras.layers.Dense) for call in graph.calls) <= 1:",
    ): "the layer itself is one",
    (
        "keras_layer_entropy/recording/graph.py",
        "return {call.path for call in graph.calls if calls[id(call.operation)] != 1}",
    ): "what is counted there is called once at least",
}

Mutant = collections.namedtuple("Mutant", "path line was becomes code")


@functools.cache
def operators():
    """The operators of Cosmic Ray that need no words of ours."""
    classes = {name: plugins.get_operator(name) for name in plugins.operator_names()}
    return {name: each() for name, each in classes.items() if not each.arguments()}


def cannot_matter(node):
    """Whether a node stands in an annotation, which nothing reads while the program runs, or is the
    `strict` of a `zip`, which says what the lines before it have made sure of.
    """
    while node.parent is not None:
        position = node.parent.children.index(node)
        before = [getattr(each, "value", None) for each in node.parent.children[:position]]
        if (node.parent.type, *before[-1:]) in (
            ("funcdef", "->"), ("tfpdef", ":"), ("annassign", ":"),
        ) or (node.parent.type, before) == ("argument", ["strict", "="]):  # fmt: skip
            return True
        node = node.parent
    return False


def mutations(path):
    """The mutations of a file: (operator, occurrence) by place."""
    places = collections.defaultdict(list)
    nodes = list(ast_nodes(get_ast((ROOT / path).read_text())))
    for name, operator in operators().items():
        occurrence = 0
        for node in nodes:
            for start, end in operator.mutation_positions(node):
                if not cannot_matter(node):
                    places[path, start, end].append((name, occurrence))
                occurrence += 1
    return places


def drawn(count, seed):
    """Mutants at `count` places, one at each."""
    package, places = ROOT / "keras_layer_entropy", {}
    for file in sorted(file for pattern in SOURCES for file in package.glob(pattern)):
        places |= mutations(str(file.relative_to(ROOT)))
    generator, found = random.Random(seed), []
    for place in generator.sample(sorted(places), len(places)):
        path, code = place[0], (ROOT / place[0]).read_text()
        name, occurrence = generator.choice(places[place])
        try:
            mutated = mutate_code(code, operators()[name], occurrence)
        except AttributeError:  # of Cosmic Ray, where an exception has a name with a dot
            continue
        lines = zip(code.splitlines(), mutated.splitlines(), strict=False)
        line, (was, becomes) = next(x for x in enumerate(lines, 1) if x[1][0] != x[1][1])
        if (path, becomes.strip()) not in EQUIVALENT:
            found.append(Mutant(path, line, was.strip(), becomes.strip(), mutated))
        if len(found) == count:
            break
    return found


def copy_of_project(folder):
    """A copy to mutate."""
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".git", ".venv", "runs", "build"))
    return folder


def pytest(folder, *arguments, timeout=None):
    """Runs pytest in a copy of the project; returns its exit code and what it printed."""
    options = ["-x", "-q", "-p", "no:cacheprovider"]
    environment = os.environ | {
        "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "TF_CPP_MIN_LOG_LEVEL": "3",
        "FITS_ONCE": "1",
    }  # fmt: skip
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *arguments],
        cwd=folder, env=environment, timeout=timeout, capture_output=True, text=True,
    )  # fmt: skip
    return run.returncode, run.stdout + run.stderr


def record(folder):
    """Runs all tests with coverage."""
    code, printed = pytest(
        folder, "-n", str(_WORKERS.value), "--cov=keras_layer_entropy", "--cov-context=test",
        "--cov-report=", "--junitxml=times.xml",
    )  # fmt: skip
    if code:
        sys.exit(f"The tests fail without any mutant:\n{printed}")


def tests_by_line(folder):
    """What was recorded: file -> line (0: any) -> tests that go through it, `MOST` seconds of them.

    Those of the file come first, whether or not they are seen to go through the line, then the
    quickest.
    """
    times = {}
    for case in xml.etree.ElementTree.parse(folder / "times.xml").iter("testcase"):
        test = f"{case.get('classname').replace('.', '/')}.py::{case.get('name')}"
        times[test] = float(case.get("time"))
    data = coverage.CoverageData(str(folder / ".coverage"))
    data.read()
    found = {}
    for file in data.measured_files():
        own = {test for test in times if f"/test_{pathlib.Path(file).name}::" in test}
        lines = {
            line: {context.removesuffix("|run") for context in contexts if context.endswith("|run")}
            for line, contexts in data.contexts_by_lineno(file).items()
        }
        lines[0] = set().union(*lines.values())
        whole = data.contexts_by_lineno(file)
        for line, tests in lines.items():
            if "" in whole.get(line, ()):  # it runs when the file is imported, too
                tests = lines[0]
            order = sorted(tests | own, key=lambda test: (test not in own, times[test]))
            until = itertools.accumulate(times[test] for test in order)
            lines[line] = [test for test, end in zip(order, until, strict=True) if end <= MOST]
        found[str(pathlib.Path(file).relative_to(folder))] = lines
    # A test that is not found under its name would look like one that fails.
    asked = {test for lines in found.values() for tests in lines.values() for test in tests}
    code, printed = pytest(folder, "--collect-only", *asked)
    if code:
        sys.exit(f"Not all tests are found again:\n{printed}")
    return found


def survives(copies, mutant, tests):
    """Whether a mutant passes the tests of its line, and how long that took.

    What runs while the file is imported is no test's own: then all tests of the file are asked.
    """
    folder, start = copies.get(), time.perf_counter()
    file = folder / mutant.path
    original = file.read_text()
    try:
        file.write_text(mutant.code)
        lines = tests.get(mutant.path, {})
        asked = lines.get(mutant.line) or lines.get(0)
        if not asked:
            return True, 0.0
        code, printed = pytest(folder, HOUSE, *asked, timeout=TIMEOUT)
        if code not in (0, 1, 2, 4):  # 2 or 4 where the mutant cannot be imported
            raise RuntimeError(f"pytest ended with {code}:\n{printed}")
        return code == 0, time.perf_counter() - start
    except subprocess.TimeoutExpired:
        return False, TIMEOUT
    finally:
        file.write_text(original)
        copies.put(folder)


def main(argv):
    """Draws, tests and tells."""
    del argv
    mutants = drawn(_COUNT.value, _SEED.value)
    with (
        tempfile.TemporaryDirectory() as folder,
        concurrent.futures.ThreadPoolExecutor(_WORKERS.value) as pool,
    ):
        copies = queue.Queue()
        for worker in range(_WORKERS.value):
            copies.put(copy_of_project(pathlib.Path(folder).resolve() / str(worker)))
        record(copies.queue[0])
        tests = tests_by_line(copies.queue[0])
        runs = {pool.submit(survives, copies, each, tests): each for each in mutants}
        survivors = 0
        for run in concurrent.futures.as_completed(runs):
            survived, seconds = run.result()
            survivors += survived
            mutant, outcome = runs[run], "SURVIVED" if survived else "noticed"
            print(f"{outcome} {mutant.path}:{mutant.line} ({seconds:.0f} s)")
            print(f"    {mutant.was}\n    {mutant.becomes}", flush=True)
    print(f"{len(mutants) - survivors} of {len(mutants)} mutants were noticed.")


if __name__ == "__main__":
    app.run(main)
