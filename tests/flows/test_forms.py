"""Whatever a form of the dashboard or an override says, one line refuses it, and the experiment stays as it was."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import corpus
import pytest
from conftest import Pipeline, as_yaml
from prefect.exceptions import ParameterTypeError, SignatureMismatchError

from flows import inputs
from flows.flow import reproduce
from flows.sweeps.board import sweep
from flows.sweeps.space import load
from stages.common import settings
from stages.common.errors import BadInput
from stages.common.paths import EXPERIMENT
from stages.common.reading import read_yaml

EMPTY = {"targets": [], "recipe": None, "overrides": [], "experiment": None, "slots": None}
TAKEN = [{"targets": ["a"] * 3000}, {"overrides": ["seed=3"]}, {"experiment": "new"}, {"slots": 2}]


@pytest.fixture
def one(pipeline, tiny) -> Iterator[Pipeline]:
    """A pipeline of one stage, beside an experiment of one method, since DVC takes a while to edit a long file."""
    method = tiny["methods"]["ssd-2l"]
    part = tiny["parts"]["ssd-2l"]
    decomposition = {part["dataset"]: tiny["decompose"][part["dataset"]]}
    own = {"methods": {"ssd-2l": method}, "parts": {"ssd-2l": part}, "decompose": decomposition, "students": {}}
    EXPERIMENT.write_text(as_yaml(tiny | own))
    settings.validate(read_yaml(EXPERIMENT), EXPERIMENT)
    pipeline.write("a: {cmd: echo a > a, outs: [a]}")
    before = EXPERIMENT.read_bytes()
    yield pipeline
    assert EXPERIMENT.read_bytes() == before, "what a run changes is put back, and a refused one writes nothing"
    assert not list(pipeline.folder.glob("pwn")) and not list(pipeline.folder.glob(".-S-*"))


def answer(asked: Callable[[], None]) -> str:
    """The line that refuses, "" where nothing is refused. It has to come within a second of work."""
    started = time.process_time()
    try:
        asked()
        line = ""
    except (ParameterTypeError, SignatureMismatchError) as error:  # Prefect's, from the types of the form
        line = " ".join(str(error).split())
    except BadInput as error:
        line = str(error)
        assert line.isprintable() and len(line) <= 1000, line
    assert time.process_time() - started < 1, line
    return line


def _asked(given: dict) -> str:
    def ask() -> None:
        taken = reproduce.validate_parameters(EMPTY | given)
        with inputs.prepared(**taken, passing=True):
            pass

    return answer(ask)


def test_every_input_of_the_form_is_refused_in_one_line(one):
    cases = list(corpus.forms())
    assert len(cases) >= 60
    wrong = {}
    for given in cases:
        try:
            if not _asked(given):
                wrong[str(given)[:80]] = "taken"
        except Exception as error:
            wrong[str(given)[:80]] = f"{type(error).__name__}: {str(error)[:200]}"
    assert not wrong, "\n".join(map(str, wrong.items()))


@pytest.mark.parametrize("given", TAKEN)
def test_the_form_takes_what_it_is_for(one, given):
    assert _asked(given) == ""


def test_every_override_is_refused_in_one_line(one):
    wrong = {}
    for override in corpus.OVERRIDES:
        try:
            if not _asked({"overrides": [override]}):
                wrong[override[:80]] = "taken"
        except Exception as error:
            wrong[override[:80]] = f"{type(error).__name__}: {str(error)[:200]}"
    assert not wrong, "\n".join(map(str, wrong.items()))


@pytest.mark.parametrize("name", ["", "nope", "../../etc", "a\0", corpus.LONG, corpus.ESCAPES, "\udcff", 7, None, []])
def test_every_name_of_a_sweep_is_refused_in_one_line(one, name):
    assert answer(lambda: load(sweep.validate_parameters({"name": name})["name"]) and None)
