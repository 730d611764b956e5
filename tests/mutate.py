"""Breaks the code in one place at a time, as tests/mutants.yaml says, and sees whether the named test notices.

    python tests/mutate.py [--only GLOB] [--jobs 2]

mutants.yaml maps a source file to its mutants: `name` says what is wrong, `text` stands exactly once in the file and is
replaced by `by`, and `test` is the pytest node (below tests/) that must then fail. Each runs on a copy of the tree,
never on the tree itself. A mutant is killed only where its test itself fails: not by an error before the test runs, and
not by the time limit. Exit code 1 where one survives, a text is not found once, or a test fails without any mutant.
"""

from __future__ import annotations

import argparse
import fnmatch
import multiprocessing
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent
LIMIT = 300.0  # seconds of one run
ASSERTIONS = ("assert", "AssertionError", "Failed: DID NOT RAISE")
KILLS = ("killed by assertion", "killed by error")
WARM = multiprocessing.get_context("forkserver")  # imports what takes seconds once, and forks for every run
WARM.set_forkserver_preload(["pytest", "torch.distributed.fsdp", "scipy.stats", "safetensors.torch", "pydantic"])


@dataclass(frozen=True)
class Mutant:
    """One text of one file replaced, and the test that must fail then."""

    file: str
    name: str
    text: str
    by: str
    test: str

    @property
    def line(self) -> str:
        return f"{self.file}: {self.name} ({self.test})"


def read(path: Path) -> list[Mutant]:
    """The mutants of a file, in its order."""
    found = YAML(typ="safe").load(path)
    return [Mutant(file, **entry) for file, entries in found.items() for entry in entries]


def chosen(mutants: list[Mutant], pattern: str | None) -> list[Mutant]:
    """Those whose file, name or test matches a shell pattern."""
    if pattern is None:
        return mutants
    return [m for m in mutants if any(fnmatch.fnmatch(part, pattern) for part in (m.file, m.name, m.test))]


def misplaced(mutants: list[Mutant], root: Path) -> Iterator[str]:
    """A line for each mutant whose text does not stand exactly once in its file, or that changes nothing."""
    for mutant in mutants:
        path = root / mutant.file
        count = path.read_text().count(mutant.text) if path.exists() else 0
        if count != 1 or mutant.text == mutant.by:
            yield f"{mutant.line}: its text is found {count} times"


def copied(root: Path, to: Path) -> Path:
    """A copy of what git knows of the tree, and of what is new and not ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        if name and (root / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / name, to / name)
    return to


def outcomes(tree: Path, *nodes: str) -> dict[str, str]:
    """How each test of the nodes ended: 'passed', 'killed by assertion', 'killed by error', or why it never ran."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ["-q", "-p", "no:cacheprovider", f"--junitxml={report}", *(["-x"] if len(nodes) == 1 else [])]
        process = WARM.Process(target=_pytest, args=(tree, [*options, *(f"tests/{node}" for node in nodes)]))
        process.start()
        process.join(LIMIT * len(nodes))
        if process.exitcode is None:
            process.kill()
            process.join()
            return {"": "ran into the time limit"}
        cases = list(ElementTree.parse(report).iter("testcase")) if report.exists() else []
        if not cases:
            return {"": f"no test ran (pytest ended with {process.exitcode})"}
        return {f"{case.get('classname')}::{case.get('name')}": _outcome(case) for case in cases}


def _pytest(tree: Path, arguments: list[str]) -> None:
    """pytest on a tree, in a process of its own that has imported nothing of the project."""
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # what other packages bring takes half a second to import
    sys.dont_write_bytecode = True  # compiled code is told apart by seconds and size, and a mutant may change neither
    import pytest

    os.chdir(tree)
    sys.path[:] = [
        str(tree),
        *(entry for entry in sys.path if Path(entry or ".").resolve() not in (ROOT, ROOT / "tests")),
    ]
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1), os.dup2(quiet, 2)
    sys.exit(pytest.main(arguments))


def _outcome(case: ElementTree.Element) -> str:
    if (error := case.find("error")) is not None:
        return f"did not run: {error.get('message')}"
    if case.find("skipped") is not None:
        return "was skipped"
    failure = case.find("failure")
    if failure is None:
        return "passed"
    return KILLS[0] if failure.get("message", "").startswith(ASSERTIONS) else KILLS[1]


def verdict(mutant: Mutant, tree: Path) -> str:
    """Runs the test of a mutant on a tree, which is as before afterwards."""
    path = tree / mutant.file
    before = path.read_text()
    path.write_text(before.replace(mutant.text, mutant.by))
    try:
        found = set(outcomes(tree, mutant.test).values())
    finally:
        path.write_text(before)
    killed = found & set(KILLS)
    return killed.pop() if killed else "survived" if found == {"passed"} else f"survived: the test {found.pop()}"


def healthy(nodes: list[str], tree: Path) -> list[str]:
    """A line for each node that does not pass on the tree as it is."""
    return [
        f"{case or node}: {how}"
        for node in _by_file(nodes)
        for case, how in outcomes(tree, *node).items()
        if how != "passed"
    ]


def _by_file(nodes: list[str]) -> list[tuple[str, ...]]:
    files: dict[str, dict[str, None]] = {}
    for node in nodes:
        files.setdefault(node.partition("::")[0], {})[node] = None
    return [tuple(found) for found in files.values()]


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def run(mutants: list[Mutant], root: Path, jobs: int) -> int:
    """Tests every mutant and tells what became of it; the exit code."""
    if faults := list(misplaced(mutants, root)):
        print(*faults, sep="\n")
        return 1
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        trees: queue.Queue[Path] = queue.Queue()
        for number in range(jobs):
            trees.put(copied(root, Path(folder) / str(number)))

        def on_a_tree(work, *given):
            tree = trees.get()
            try:
                return work(*given, tree)
            finally:
                trees.put(tree)

        files = _by_file([mutant.test for mutant in mutants])
        print(f"{len(mutants)} mutants; first their tests without any, from {len(files)} files", flush=True)
        sick = [line for lines in pool.map(lambda nodes: on_a_tree(healthy, list(nodes)), files) for line in lines]
        if sick:
            print("tests that fail without a mutant:", *sick, sep="\n  ")
            return 1
        print(f"they pass ({clock(time.monotonic() - started)})", flush=True)
        begun, verdicts = time.monotonic(), []
        for mutant, found in zip(mutants, pool.map(lambda mutant: on_a_tree(verdict, mutant), mutants)):
            verdicts.append(found)
            spent = time.monotonic() - begun
            left = spent / len(verdicts) * (len(mutants) - len(verdicts))
            print(f"{len(verdicts):4}/{len(mutants)}  {clock(left)} left  {found:20}  {mutant.line}", flush=True)
    survivors = [mutant.line for mutant, found in zip(mutants, verdicts) if found not in KILLS]
    counts = ", ".join(f"{verdicts.count(kind)} {kind}" for kind in KILLS)
    print(f"{counts}, {len(survivors)} survived, in {clock(time.monotonic() - started)}")
    print(*(f"survived: {line}" for line in survivors), sep="\n", end="\n" if survivors else "")
    return 1 if survivors else 0


def main() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    parser = argparse.ArgumentParser(prog="python tests/mutate.py", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--only", metavar="GLOB", help="mutants whose file, name or test matches")
    parser.add_argument("--jobs", type=int, default=2, help="how many tests run at once, each on one thread (2)")
    given = parser.parse_args()
    mutants = chosen(read(ROOT / "tests" / "mutants.yaml"), given.only)
    if not mutants:
        sys.exit(f"error: --only: {given.only!r} is not allowed; allowed: a pattern that a file, name or test matches")
    sys.exit(run(mutants, ROOT, given.jobs))


if __name__ == "__main__":
    main()
