"""Which small faults in the code would no test notice?

    make mutants

Draws places in the code at random, and at each one of the mutations that Cosmic Ray knows there
(another operator, comparison or number, a flag turned, a loop that is not run ...). Each mutant is
tested in a copy of the project by the tests that `TESTS` names for its file, up to the first that
fails. Those that survive are shown; those of `EQUIVALENT` change nothing that anybody could notice,
and are not drawn.
"""

import collections
import concurrent.futures
import functools
import os
import pathlib
import queue
import random
import shutil
import subprocess
import sys
import tempfile
import time

from absl import app, flags
from cosmic_ray import plugins
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code

_COUNT = flags.DEFINE_integer("count", 100, "How many mutants to draw.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Other seeds draw others.")
_ONLY = flags.DEFINE_list("only", None, "Beginnings of paths to draw from (default: all of TESTS).")
_WORKERS = flags.DEFINE_integer("workers", os.cpu_count(), "Mutants at a time.", lower_bound=1)

ROOT = pathlib.Path(__file__).parents[1]
TIMEOUT = 1200  # seconds; a mutant that takes longer has been noticed

PASSES = (
    "test_labels.py test_streaming.py test_statistics.py test_all_measures.py test_probe.py "
    "test_analyzer.py test_monitor.py"
)
MEASURES = f"measures test_sample_measures.py test_units.py {PASSES}"
REWRITES = (
    "pruning/test_rewrite.py pruning/test_refit.py pruning/test_surgery.py pruning/test_copies.py "
    "pruning/test_cost.py pruning/test_accuracies.py pruning/test_search.py test_prune.py"
)
# What is drawn from, and what tests it: the file itself and those beside it.
TESTS = {
    "keras_layer_entropy/measures": f"{MEASURES} {REWRITES}",
    "keras_layer_entropy/labels.py": PASSES,
    "keras_layer_entropy/statistics.py": f"test_statistics.py {MEASURES}",
    "keras_layer_entropy/streaming.py": f"test_streaming.py {PASSES} pruning/test_refit.py",
    "keras_layer_entropy/pruning": REWRITES,
    "keras_layer_entropy/model_files/inspection.py": "model_files",
}
# What a line becomes, by file: why nobody could notice it.
EQUIVALENT: dict[tuple[str, str], str] = {}

Mutant = collections.namedtuple("Mutant", "path line was becomes code")


def sources():
    """The files to draw from, with their tests: examples in the file, its own tests, others."""
    found = {}
    for path, tests in TESTS.items():
        files = [ROOT / path] if path.endswith(".py") else (ROOT / path).rglob("*.py")
        for file in sorted(files):
            name = str(file.relative_to(ROOT))
            if _ONLY.value is None or name.startswith(tuple(_ONLY.value)):
                own = (ROOT / "tests").rglob(f"test_{file.stem}.py")
                others = (ROOT / "tests" / each for each in tests.split())
                found[name] = [str(each.relative_to(ROOT)) for each in (file, *own, *others)]
    return found


@functools.cache
def operators():
    """The operators of Cosmic Ray that need no words of ours."""
    classes = {name: plugins.get_operator(name) for name in plugins.operator_names()}
    return {name: each() for name, each in classes.items() if not each.arguments()}


def annotates(node):
    """Whether a node stands in an annotation, which nothing reads while the program runs."""
    while node.parent is not None:
        position = node.parent.children.index(node)
        before = node.parent.children[position - 1] if position else None
        if (node.parent.type, getattr(before, "value", None)) in (
            ("funcdef", "->"), ("tfpdef", ":"), ("annassign", ":"),
        ):  # fmt: skip
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
                if not annotates(node):
                    places[path, start, end].append((name, occurrence))
                occurrence += 1
    return places


def drawn(count, seed):
    """Mutants at `count` places, one at each."""
    places = {}
    for path in sources():
        places |= mutations(path)
    generator, found = random.Random(seed), []
    for place in generator.sample(sorted(places), len(places)):
        path, code = place[0], (ROOT / place[0]).read_text()
        name, occurrence = generator.choice(places[place])
        mutated = mutate_code(code, operators()[name], occurrence)
        lines = zip(code.splitlines(), mutated.splitlines(), strict=False)
        line, (was, becomes) = next(
            each for each in enumerate(lines, 1) if each[1][0] != each[1][1]
        )
        if (path, becomes.strip()) not in EQUIVALENT:
            found.append(Mutant(path, line, was.strip(), becomes.strip(), mutated))
        if len(found) == count:
            break
    return found


def copy_of_project(folder):
    """A copy to mutate."""
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".git", ".venv", "runs", "build"))
    return folder


def passes(folder, tests, timeout=TIMEOUT):
    """Whether the tests pass in a copy of the project."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    environment = os.environ | {
        "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "TF_CPP_MIN_LOG_LEVEL": "3",
    }  # fmt: skip
    try:
        run = subprocess.run(
            command, cwd=folder, env=environment, timeout=timeout, capture_output=True, text=True
        )
    except subprocess.TimeoutExpired:
        return False
    if run.returncode not in (0, 1, 2):  # 2: the mutant cannot be imported
        raise RuntimeError(f"pytest ended with {run.returncode}:\n{run.stdout}{run.stderr}")
    return run.returncode == 0


def survives(copies, mutant, tests):
    """Whether a mutant passes its tests, and how long that took."""
    folder, start = copies.get(), time.perf_counter()
    file = folder / mutant.path
    original = file.read_text()
    try:
        file.write_text(mutant.code)
        return passes(folder, tests), time.perf_counter() - start
    finally:
        file.write_text(original)
        copies.put(folder)


def main(argv):
    """Draws, tests and tells."""
    del argv
    mutants, tests = drawn(_COUNT.value, _SEED.value), sources()
    with (
        tempfile.TemporaryDirectory() as folder,
        concurrent.futures.ThreadPoolExecutor(_WORKERS.value) as pool,
    ):
        copies = queue.Queue()
        for worker in range(_WORKERS.value):
            copies.put(copy_of_project(pathlib.Path(folder) / str(worker)))
        all_tests = sorted({each for mutant in mutants for each in tests[mutant.path]})
        if not passes(copies.queue[0], ["-n", str(_WORKERS.value), *all_tests], None):
            sys.exit("The tests fail without any mutant: see `make test`.")
        runs = {pool.submit(survives, copies, each, tests[each.path]): each for each in mutants}
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
