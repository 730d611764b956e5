"""A copy of the project to run commands in, on the tiny recipe, and the experiment of that recipe to change."""

from __future__ import annotations

import copy
import io
import json
import os
import runpy
import shutil
import subprocess
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, chdir, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import polars as pl
import psutil
import pyarrow.parquet as pq
import pytest
import torch
from filelock import FileLock

from multiscale.core import intact
from multiscale.core.models import ModelConfig
from multiscale.core.settings import Section
from multiscale.core.storage import CHECKSUM, read_json, write_json, write_sealed_json
from multiscale.training.part import Training
from stages.common import errors, shards
from stages.common.images import SCHEMA
from stages.common.paths import EXPERIMENT
from stages.common.reading import read_yaml

ROOT = Path(__file__).parent.parent
FILES = ("dvc.yaml", "constraints.txt", "pyproject.toml", ".gitignore", ".dvcignore")

# Their tests start servers, clusters or pipelines, train, or take many seconds in all; `make check` leaves them out.
SLOW = """
cluster compare damage dashboard download drill evaluation export flows graph listeners mend mutate one_image
paper_networks passes pipeline plan_stage postgres previews prompts propose published_stages readme remote report
shards ssd stages start swd_lora swd_stages sweep text_stages text_training timing_stage training unet validation warm
wmgm wmgm_ablations
""".split()

# A training of seconds.
TRAINING = Training(
    images=96,
    batch=8,
    lr=1e-3,
    warmup_images=0,
    decay="constant",
    weight_decay=0.0,
    beta2=0.99,
    clip=1.0,
    ema_images=10,
    precision="fp32",
    compile=False,
    log_images=48,
)


def replace(model: Section, **changes: object) -> Section:
    """A copy of a section of settings with other values, checked again."""
    return type(model).model_validate(model.model_dump() | changes)


CONFIG = ModelConfig(kind="toy", role="toy")  # of a part whose model nobody opens

pytest_plugins = ["browser", "parts", "results"]  # the fixtures `browser`, `decomposed` and `measured`

# The files that take longest start first, so that none is waited for in the end.
LONGEST = """
pipeline cluster sweep flows listeners report damage graph dashboard readme export start training paper_networks drill
one_image wmgm mend published_stages prompts remote postgres download
""".split()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Orders the files, the order of the tests within one stays; marks the slow ones."""

    def name(item: pytest.Item) -> str:
        return item.path.stem.removeprefix("test_")

    items.sort(key=lambda item: [*LONGEST, name(item)].index(name(item)))
    for item in items:
        if name(item) in SLOW:
            item.add_marker(pytest.mark.slow)


def refused(done: subprocess.CompletedProcess, *fragments: str, code: int = 2) -> None:
    """Asserts one line on stderr with the fragments, and nothing on stdout."""
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1), done.stderr
    assert done.stderr.startswith("error: ") and all(fragment in done.stderr for fragment in fragments), done.stderr


def until(value: Callable, seconds: float = 600):
    """The first true answer of `value`. The limit is for what hangs; a loaded machine needs minutes."""
    deadline = time.monotonic() + seconds
    while not (found := value()):
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.1)
    return found


def processes(marker: str) -> list[int]:
    """The processes that have this in their command line."""
    found = psutil.process_iter(["cmdline", "status"])
    alive = [each for each in found if each.info["status"] != psutil.STATUS_ZOMBIE]
    return [each.pid for each in alive if marker in " ".join(each.info["cmdline"] or ())]


def free_port() -> int:
    """A port that is free, as is the next."""
    from flows import dashboard

    # Away from that of another worker, and below those that the system gives to connections (from 32768 on).
    for port in range(21000 + os.getpid() % 1000 * 10, 32000, 2):
        try:
            dashboard.check_free(port)
            dashboard.check_free(port + 1)
        except errors.BadInput:
            continue
        return port
    raise AssertionError("no free port")


def called(module: str, *arguments: str) -> subprocess.CompletedProcess:
    """What `python -m MODULE arguments...` does, in this process: importing torch or Prefect anew takes seconds."""
    out, errors, code, before = io.StringIO(), io.StringIO(), 0, sys.argv
    sys.argv = [module.rpartition(".")[2], *arguments]
    try:
        with redirect_stdout(out), redirect_stderr(errors), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*found in sys.modules after import.*")
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.argv = before
    return subprocess.CompletedProcess([module, *arguments], code, out.getvalue(), errors.getvalue())


class Pipeline:
    """A git and DVC project with small stages of its own."""

    def __init__(self, folder: Path):
        self.folder = folder

    def write(self, stages: str) -> None:
        """Makes these stages the pipeline, and commits."""
        (self.folder / "dvc.yaml").write_text("stages:\n" + textwrap.indent(textwrap.dedent(stages), "  "))
        self.run("git", "add", "-A")
        self.run("git", "commit", "-qm", "stages")

    def run(self, *command: str, ok: bool = True) -> str:
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True)
        assert not ok or done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def lock(self) -> str:
        return (self.folder / "dvc.lock").read_text()

    def is_clean(self) -> bool:
        """Whether DVC finds everything up to date, and no lock in its way."""
        return "up to date" in self.run("dvc", "status")


class Project:
    """A copy of the project's sources; it is the working directory of the test that asks for it."""

    def __init__(self, folder: Path):
        self.folder = folder

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess:
        """`python command...` in the project, its output captured as text."""
        return subprocess.run(
            [sys.executable, *command], cwd=self.folder, env=os.environ | environment, capture_output=True, text=True
        )

    def stage(self, name: str, *arguments: str) -> subprocess.CompletedProcess:
        """What `python -m stages.NAME arguments...` does, in this process."""
        return called(f"stages.{name}", *arguments)

    def read(self) -> dict:
        """The settings in params.yaml."""
        return read_yaml(self.folder / EXPERIMENT)

    def change(self, changes: dict) -> None:
        """Writes changed settings (dotted key -> value, or ... to delete it) into params.yaml."""
        (self.folder / EXPERIMENT).write_text(as_yaml(changed(self.read(), changes)))

    def files(self) -> dict[str, bytes]:
        """Every file but compiled code, by path: what a command that writes nothing leaves as it was."""
        paths = [path for path in self.folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        return {path.relative_to(self.folder).as_posix(): path.read_bytes() for path in paths}


def changed(tree: dict, changes: dict) -> dict:
    """A copy of settings with dotted keys set, or deleted where the value is `...`."""
    tree = json.loads(json.dumps(tree))
    for key, value in changes.items():
        *path, last = (int(step) if step.isdigit() else step for step in key.split("."))
        node = tree
        for step in path:  # a key that stands at its default is not in the file
            node = node[step] if isinstance(node, list) else node.setdefault(step, {})
        if value is ...:
            del node[last]
        else:
            node[last] = copy.deepcopy(value)  # a later key may lie in it
    return tree


def as_yaml(tree: dict) -> str:
    """Settings as text that YAML reads (JSON is YAML, but for infinity and what is no number)."""
    return json.dumps(tree, indent=1).replace("Infinity", ".inf").replace("NaN", ".nan")


def made_once(tmp_path_factory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder for all workers of a session; the first that asks for it makes it, the others wait."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    ready = folder.with_suffix(".ready")
    with FileLock(folder.with_suffix(".lock")):
        if not ready.exists():
            make(folder)
            ready.touch()
    return folder


@pytest.fixture(scope="session")
def sources(tmp_path_factory):
    """A pristine copy of the project's sources, its experiment the tiny recipe."""
    folder = made_once(tmp_path_factory, "sources", make_sources)

    def touched() -> dict[Path, int]:
        return {file: file.stat().st_mtime_ns for file in folder.rglob("*.py")}

    before = touched()
    yield folder
    assert touched() == before, "a test that edits code needs a working_copy(sources), which shares none of it"


def make_sources(folder: Path) -> None:
    for name in ("multiscale", "stages", "flows", "params"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (*FILES, *(path.relative_to(ROOT) for path in ROOT.glob("data/raw/*/README.md"))):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    shutil.copy(ROOT / "tests" / "tiny.yaml", folder / "params" / "recipes" / "tiny.yaml")
    with chdir(folder):
        done = Project(folder).stage("recipe", "tiny", "--force")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def tiny(sources) -> dict:
    """The settings of the tiny recipe."""
    return read_yaml(sources / EXPERIMENT)


@pytest.fixture
def working_copy(tmp_path, monkeypatch) -> Callable[..., Path]:
    """Makes a copy of a folder for one test, which is its working directory."""

    def working_copy(source: Path, copy: Callable = shutil.copy2) -> Path:
        folder = shutil.copytree(source, tmp_path / "project", copy_function=copy)
        monkeypatch.chdir(folder)
        return folder

    return working_copy


@pytest.fixture
def project(sources, working_copy) -> Project:
    """A copy of the project of its own, and the working directory. Its code is not to be edited in place."""
    return Project(working_copy(sources, copy_but_for_code))


def copy_but_for_code(source: str, target: str) -> None:
    """Copies a file, a module by a link: most files are modules, and few tests change one."""
    (os.link if source.endswith(".py") else shutil.copy2)(source, target)


@pytest.fixture(scope="session")
def trained(sources, tmp_path_factory) -> Path:
    """A project in which every stage that DiT and MSF need has run, on few images and for a step or two."""

    def train(folder: Path) -> None:
        shutil.copytree(sources, folder)
        with chdir(folder):
            made = Project(folder)
            trainings = ["vae", "classifier", "parts.dit", "parts.msf-0", "parts.msf-1"]
            small = {f"{name}.training.{key}": 16 for name in trainings for key in ("images", "log_images", "batch")}
            smaller = {"sample.images": 20, "sample.batch": 8, "run.batch": 16}
            made.change(small | smaller | {"evaluate.reference_images": 40})
            write_images(folder / "data" / "images.parquet", 80)
            stages = "code, vae, latents 24, latents 32, decompose full, decompose residual, classifier, reference, "
            for stage in (stages + "train dit, train msf-0, train msf-1, sample msf, evaluate msf").split(", "):
                done = made.stage(*stage.split())
                assert done.returncode == 0, f"{stage}\n{done.stderr}"

    return made_once(tmp_path_factory, "trained", train)


def write_images(path: Path, count: int) -> None:
    """A data set of grey images, discs whose size is their class; no class is held out for validation alone."""
    y, x = np.mgrid[:32, :32]
    kinds = [(index + index // 10) % 10 for index in range(count)]
    discs = [np.hypot(x - 16, y - 12 - index % 8) < 3 + kind for index, kind in enumerate(kinds)]
    splits = ["validation" if index % 10 == 9 else "test" if index % 7 == 3 else "train" for index in range(count)]
    write_set(path, splits, np.array(discs)[:, None] * np.uint8(255), kinds)


def write_set(path: Path, splits: list[str], pixels: np.ndarray, labels: list[int]) -> None:
    """A data set of images uint8 (N, C, H, W)."""
    rows = [(f"{index}", split, labels[index]) for index, split in enumerate(splits)]
    path.parent.mkdir(exist_ok=True)
    pl.DataFrame(rows, schema=SCHEMA, orient="row").write_parquet(path)
    sealed(path)
    for split in set(splits):
        own = [index for index, each in enumerate(splits) if each == split]
        folder = path.parent / "pixels" / split
        write_pixels(folder, pixels[own], [labels[index] for index in own], 1 + max(labels))


def write_pixels(folder: Path, pixels: np.ndarray, labels: list[int], classes: int) -> None:
    """A split of a data set, uint8 (N, C, H, W), in two shards."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, rows in enumerate(np.array_split(np.arange(len(labels)), 2)):
        tensors = {"pixels": torch.from_numpy(pixels[rows]), "label": torch.tensor(labels)[rows]}
        shards.save(folder / f"{number:05}.safetensors", tensors)
    write_json(folder / "statistics.json", {"classes": classes})
    sealed(folder)


def sealed(path: str | Path) -> None:
    """Gives what a test has written in the place of a stage its checksums: a folder, Parquet or JSON."""
    path = Path(path)
    if path.is_dir():
        (path / intact.LIST).unlink(missing_ok=True)
        intact.seal_folder(path)
    elif path.suffix == ".parquet":
        table = pq.read_table(path)
        with pq.ParquetWriter(path, table.schema, compression="none") as writer:
            writer.write_table(table)
            writer.add_key_value_metadata({CHECKSUM: intact.BLANK})
        intact.seal_file(path)
    else:
        write_sealed_json(path, {key: value for key, value in read_json(path).items() if key != CHECKSUM})


@contextmanager
def flipped(path: Path, place: int, bit: int) -> Iterator[None]:
    """One bit of a file is another one, and the times of the file are as they were, so that DVC sees nothing."""
    before, content = path.stat(), bytearray(path.read_bytes())

    def put() -> None:
        content[place] ^= 1 << bit
        with open(path, "rb+") as file:
            file.write(content)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    put()
    try:
        yield
    finally:
        put()


@pytest.fixture(scope="session")
def empty_pipeline(tmp_path_factory) -> Path:
    """A git and DVC project without stages."""
    pipeline = Pipeline(tmp_path_factory.mktemp("pipeline"))
    pipeline.run("git", "init", "-q")
    pipeline.run("git", "config", "user.email", "tests@example.org")
    pipeline.run("git", "config", "user.name", "tests")
    pipeline.run("dvc", "init", "-q")
    for name in ("analytics", "check_update"):
        pipeline.run("dvc", "config", f"core.{name}", "false")
    pipeline.run("dvc", "config", "core.autostage", "true")
    return pipeline.folder


@pytest.fixture
def pipeline(empty_pipeline, working_copy) -> Pipeline:
    """A git and DVC project of the test's own; it is the working directory."""
    return Pipeline(working_copy(empty_pipeline))


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A real Prefect server with a password, the one that flows use, for all workers."""
    from prefect import settings as prefect

    from flows import connection, dashboard

    auth = "admin:right"
    home, patch = made_once(tmp_path_factory, "prefect", Path.mkdir), pytest.MonkeyPatch()
    patch.setenv("PREFECT_HOME", str(home))
    patch.setattr(connection, "ADDRESS", home / "address")
    using, lock = home / f"{os.getpid()}.using", FileLock(home / "lock")
    with ExitStack() as own:
        with lock:
            if not connection.ADDRESS.exists():
                own.enter_context(dashboard.prefect_server(free_port(), auth))
            url = connection.ADDRESS.read_text()
            using.touch()
        patch.setenv("PREFECT_API_URL", url)
        patch.setenv("PREFECT_API_AUTH_STRING", auth)
        with prefect.temporary_settings(
            {prefect.PREFECT_API_URL: url, prefect.PREFECT_API_AUTH_STRING: auth, prefect.PREFECT_HOME: home}
        ):
            yield url
        with lock:
            using.unlink()
            if not any(home.glob("*.using")):
                connection.ADDRESS.unlink(missing_ok=True)
        until(lambda: not any(home.glob("*.using")))  # who started it stays to the end
    patch.undo()


@pytest.fixture(scope="session")
def warm():
    """A folder for PATH whose `python` starts stages at once."""
    from flows import warm, work

    bare = {name: value for name, value in work.environment().items() if name != "PYTHONPATH"}
    with chdir(ROOT), warm.serving(bare) as folder:
        until(lambda: os.access(folder / "python", os.X_OK))
        yield folder
