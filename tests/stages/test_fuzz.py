"""Whatever is given, the answer is one clear line: no traceback, no hang, nothing that a terminal would obey."""

from __future__ import annotations

import importlib
import io
import os
import signal
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import corpus
import hypothesis
import pytest
from hypothesis import strategies

from stages import download
from stages.common import enough, images, reading, settings
from stages.common.errors import BadInput, refuse
from stages.common.harness import guarded, show
from stages.common.paths import EXPERIMENT, IMAGES
from stages.common.reading import read_yaml
from stages.schema.data import Data

LONGEST = 1000  # characters of a line
SMALL = {"name": "set", "source": "files", "path": "set", "resolution": 8, "channels": 1}
SMALL |= {"validation_share": 0, "test_share": 0}


def ended(action: Callable[[], None]) -> tuple[int, str, str]:
    """The exit code, the last line and what else is wrong with the answer of an action."""
    errors, code, trouble = io.StringIO(), 0, ""

    def stop(*_: object) -> None:
        raise RuntimeError("it hangs")

    before, started = signal.signal(signal.SIGALRM, stop), time.process_time()
    signal.alarm(20)
    try:
        with redirect_stdout(errors), redirect_stderr(errors):
            guarded(action)
    except SystemExit as end:
        code = end.code
    except BaseException as error:
        trouble = f"{type(error).__name__}: {str(error)[:200]}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    if (took := time.process_time() - started) > 1:
        trouble += f" took {took:.1f} s"
    lines = [line for line in errors.getvalue().split("\n") if not line.startswith(("\rdownload", "\rfetch"))]
    shown = "".join(lines)
    if not shown.isprintable() or "object at 0x" in shown or max(map(len, lines)) > LONGEST:
        trouble += f" shows {shown[:300]!r}"
    last = next((line for line in reversed(lines) if line), "")
    if code and (code != 2 or sum(line.startswith("error: ") for line in lines) != 1 or not last.startswith("error: ")):
        trouble += f" ends with {code} and {lines}"
    return code, last, trouble


def test_a_value_that_python_does_not_write_is_refused_in_one_line():
    assert "a: list of too many digits is not allowed" in str(refuse("file", "a", [10**5000], "less"))


@pytest.fixture
def experiment(tiny, monkeypatch):
    monkeypatch.setattr(enough, "check", lambda *given: None)  # the sets have a few images
    return settings.validate(tiny, EXPERIMENT)


def test_any_set_of_images_is_read_or_refused_in_one_line(experiment, tmp_path, monkeypatch):
    wrong, cases = {}, list(corpus.sources())
    assert len(cases) >= 80
    for index, (name, (make, said)) in enumerate(cases):
        folder = tmp_path / str(index)
        folder.mkdir()
        monkeypatch.chdir(folder)
        given = make()

        def read(given: dict = given) -> None:
            try:
                data = Data.model_validate(SMALL | given)
            except settings.ValidationError as error:
                raise settings.explain(error, {"data": SMALL | given}, EXPERIMENT) from None
            download.main(experiment.model_copy(update={"data": data}))

        code, line, trouble = ended(read)
        if said is not None and (said not in line or bool(said) != bool(code)):
            trouble += f" says {line!r}"
        if (code == 0) != IMAGES.exists():
            trouble += f" ends with {code} and images: {IMAGES.exists()}"
        if trouble:
            wrong[name] = trouble
    assert not wrong, "\n".join(f"{name}: {trouble}" for name, trouble in wrong.items())


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(os.mkfifo, id="a pipe"),
        pytest.param(lambda path: path.symlink_to("/dev/null"), id="a device"),
        pytest.param(Path.mkdir, id="a folder"),
        pytest.param(lambda path: path.touch() or os.truncate(path, reading.LARGEST + 1), id="a huge file"),
    ],
)
def test_what_is_no_file_of_settings_is_refused_in_one_line(tmp_path, make):
    make(path := tmp_path / "params.yaml")
    for read in (lambda: read_yaml(path) and None, lambda: show(tmp_path)):
        code, line, trouble = ended(read)
        assert code == 2 and "a regular file of at most" in line and not trouble


def test_what_a_decoder_warns_of_is_no_line_beside_that_of_the_stage():
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        importlib.reload(images)  # its filter; pytest sets its own before each test
        with pytest.raises(ValueError, match="10000 x 10000 pixels"):
            download.fit_image(b"P5 10000 10000 255\n", 8, 1)
    assert told == []


@hypothesis.settings(max_examples=400, deadline=None, derandomize=True, database=None)
@hypothesis.given(data=strategies.data())
def test_any_setting_is_taken_or_refused_in_one_line(tiny, data):
    tree = data.draw(corpus.settings(tiny))
    assert not ended(lambda: settings.validate(tree, EXPERIMENT) and None)[2]


@pytest.mark.parametrize("name", corpus.TEXTS)
def test_any_file_of_settings_is_read_or_refused_in_one_line(tmp_path, name):
    path = Path(tmp_path, "params.yaml")
    path.write_text(corpus.TEXTS[name], errors="surrogatepass")
    code, line, trouble = ended(lambda: settings.validate(read_yaml(path), EXPERIMENT) and None)
    assert code == 2 and not trouble
    assert ("an integer of 80000 bits" in line) == name.startswith("a hexadecimal integer")
    assert ("nested too deeply; allowed: 100" in line) == ("nested" in name)
    assert ("a reference; allowed: plain values" in line) == name.startswith("a reference")


def test_a_hundred_mappings_and_lists_in_each_other_are_read():
    nested: object = None
    for _ in range(99):
        nested = [nested]
    assert reading.parse_yaml(f"a: {'[' * 99}null{']' * 99}", EXPERIMENT) == {"a": nested}
    with pytest.raises(BadInput, match="nested too deeply"):
        reading.parse_yaml(f"a: {'[' * 100}null{']' * 100}", EXPERIMENT)
