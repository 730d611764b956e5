"""The runner of mutants names what survives, counts no broken test as a kill, and leaves the tree as it was."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import mutate
import pytest
from mutate import Mutant

SCIENCE = "def double(x):\n    return 2 * x\n\n\ndef half(x):\n    return x / 2\n"
TESTS = """
from science import double, half


def test_double():
    assert double(3) == 6


def test_half_of_nothing():
    assert half(0) == 0


def test_that_never_passes():
    assert half(2) == 2
"""


@pytest.fixture
def run(tmp_path, monkeypatch, capsys) -> Callable:
    """Runs mutants, given as (text, by, test), on a small tree: the exit code and what was said."""
    monkeypatch.setattr(mutate, "WARM", mutate.multiprocessing.get_context("spawn"))
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / "tests").mkdir()
    (tmp_path / "science.py").write_text(SCIENCE)
    (tmp_path / "tests" / "test_science.py").write_text(TESTS)

    def run(*mutants: tuple[str, str, str]) -> tuple[int, str]:
        named = [Mutant("science.py", by, text, by, f"test_science.py::{test}") for text, by, test in mutants]
        code = mutate.run(named, tmp_path, 1)
        assert (tmp_path / "science.py").read_text() == SCIENCE
        return code, capsys.readouterr().out

    return run


KILLED = ("2 * x", "3 * x", "test_double")


def test_a_mutant_is_killed_where_its_test_itself_fails_and_survives_where_it_passes_or_cannot_run(run):
    unnoticed, unreadable = ("x / 2", "x / 3", "test_half_of_nothing"), ("2 * x", "2 *", "test_double")
    code, told = run(KILLED, ("2 * x", "2 * y", "test_double"), unnoticed, unreadable)
    assert code == 1 and "1 killed by assertion, 1 killed by error, 2 survived" in told
    assert "2/4" in told and "killed by error" in told.splitlines()[3]
    *_, first, second = told.splitlines()
    assert first == "survived: science.py: x / 3 (test_science.py::test_half_of_nothing)"
    assert second == "survived: science.py: 2 * (test_science.py::test_double)"


def test_a_run_without_survivors_ends_with_exit_code_0(run):
    code, told = run(KILLED)
    assert code == 0 and "1 killed by assertion, 0 killed by error, 0 survived" in told


@pytest.mark.parametrize("text, count", [("x", 4), ("triple", 0)])
def test_a_text_that_is_not_found_once_ends_the_run_before_any_test(text, count, run):
    code, told = run(KILLED, (text, "y", "test_double"))
    assert code == 1 and told == f"science.py: y (test_science.py::test_double): its text is found {count} times\n"


@pytest.mark.parametrize("test, how", [("test_that_never_passes", "killed by assertion"), ("test_gone", "no test ran")])
def test_a_test_that_fails_without_a_mutant_ends_the_run(test, how, run):
    code, told = run(KILLED, ("x / 2", "x / 3", test))
    assert code == 1 and "tests that fail without a mutant:" in told and how in told


def test_every_mutant_stands_once_in_its_file():
    assert list(mutate.misplaced(mutate.read(mutate.ROOT / "tests" / "mutants.yaml"), mutate.ROOT)) == []


def test_every_mutant_names_a_test_that_is_there():
    for mutant in mutate.read(mutate.ROOT / "tests" / "mutants.yaml"):
        file, _, test = mutant.test.partition("::")
        assert f"def {test.partition('[')[0]}(" in (mutate.ROOT / "tests" / file).read_text(), mutant.line
