"""Every command of README.md and of the pages in docs is checked: run where that takes seconds, else parsed.

RULES says how, from the first words of a command. A command that no rule knows fails. Words in capitals stand for a
choice of the reader (FILLED has one); comments, prompts and `export` need no check of their own.
"""

from __future__ import annotations

import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise, takewhile
from pathlib import Path

import pytest
from conftest import ROOT, Pipeline
from dvc.cli import parse_args
from dvc.repo.params.show import ParamsDependency
from dvc.utils.cli_parse import to_path_overrides
from dvc.utils.hydra import apply_overrides
from ruamel.yaml import YAML

from multiscale.__main__ import settings_of
from multiscale.flow import Solver
from stages import recipe
from stages.common import harness, settings
from stages.common.paths import EXPERIMENT
from stages.common.reading import named, read_yaml
from stages.schema import Experiment
from stages.schema.rendering import render

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
INLINE = re.compile(r"`((?:python|dvc|make) [A-Za-z-][^`]*)`")
CODE = re.compile(r"^```(\w*)\n(.*?)^```$|((?:^    [^\n]*\n(?:\n(?=    ))?)+)", re.MULTILINE | re.DOTALL)
JOINED = re.compile(r"""(?:"[^"]*"|'[^']*'|[^;&'"])+""")  # what stands between ; and &&
COMMENT = re.compile(r"(^|\s)#\s.*")
FILLED = {"SCHEDULE": "equal", "GAMMA": "0.5", "NAME": "mine", "RECIPE": "clothing64", "CRON": "'0 2 * * *'"}
ROWS = ("ddpm-x0", "ddpm")  # for ROW: the first that the recipe has
OTHERS = {"toy", "dit-best"}  # recipes that a page makes before


@dataclass(frozen=True)
class Block:
    """Code of a page: its language ('' for a shell) and its lines; inline code is a block of one line."""

    page: str
    line: int
    language: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.page}:{self.line}"

    def commands(self) -> list[str]:
        """The commands of a shell, one each, without comments and continued lines."""
        lines = re.sub(r"\\\n\s*", " ", COMMENT.sub("", self.text)).splitlines() if self.language == "" else []
        return [each.strip() for line in lines for each in JOINED.findall(line) if each.strip()]


def blocks(path: Path) -> Iterator[Block]:
    """The fenced and indented code of a page, and its inline commands."""
    page, text = path.relative_to(ROOT).as_posix(), path.read_text()
    for found in CODE.finditer(text):
        language, fenced, indented = found.groups()
        code = fenced if indented is None else re.sub("^    ", "", indented, flags=re.MULTILINE)
        is_yaml = indented and re.match(r"\w+: ", indented.strip())
        yield Block(page, text.count("\n", 0, found.start()) + 1, "yaml" if is_yaml else language or "", code)
    prose = CODE.sub(lambda found: "\n" * found[0].count("\n"), text)
    for found in INLINE.finditer(prose):
        yield Block(page, prose.count("\n", 0, found.start()) + 1, "", " ".join(found[1].split()))


BLOCKS = [block for path in PAGES for block in blocks(path)]
SHELL = [(block, command) for block in BLOCKS for command in block.commands()]


def experiment_in(block: Block) -> Experiment:
    """The experiment that a block is about: the recipe that it switches to, else the embedded one."""
    switched = re.findall(r"stages\.recipe ([\w-]+)", block.text)
    return experiment_of(next((name for name in switched if name in named(recipe.RECIPES)), "embedded"))


@cache
def experiment_of(name: str) -> Experiment:
    return recipe.experiment_of(name)


# --- how a command is checked


def made(command: str, block: Block, folder: Path) -> None:
    """`make -n`: the target is one of those that `make help` lists, and so is all that it needs."""
    target = shlex.split(command)[1:]
    listed = re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {word for word in target if "=" not in word} <= {*listed}
    done = subprocess.run(["make", "-n", *target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    variables = [word.partition("=")[0] for word in target if "=" in word]
    assert all(f"$({name})" in (ROOT / "Makefile").read_text() for name in variables)


def parsed(command: str, block: Block, folder: Path) -> None:
    """The module reads its arguments, and is stopped before the work. Targets, recipes and sweeps exist."""
    _, _, module, *arguments = shlex.split(command)
    given, patch = [], pytest.MonkeyPatch()
    patch.setattr(sys, "argv", [module.replace(".", "/") + ".py", *arguments])
    patch.setattr(harness, "guarded", lambda action, **rest: given.append(rest))
    patch.chdir(ROOT)
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        assert not end.code, f"argument error in {command}"
    finally:
        patch.undo()
    assert given or "--help" in arguments, "the module has not come to its work"
    valued = ("-S", "--name", "--slots")  # options of `flows.reproduce`
    names = [word for before, word in pairwise([module, *arguments]) if word[0] != "-" and before not in valued]
    if module == "stages.recipe" and names:
        assert names[0] in {*named(recipe.RECIPES), *OTHERS, FILLED["NAME"], "new"}
    elif module == "flows.sweeps" and names:
        assert (ROOT / "params" / "sweeps" / f"{names[0]}.yaml").exists()
    elif module == "flows.reproduce":
        exist(names, experiment_in(block))


def exists(command: str, block: Block, folder: Path) -> None:
    """A benchmark is a module; its own page says what it was run with."""
    assert (ROOT / Path(*command.split()[2].split("."))).with_suffix(".py").exists()
    pages = (ROOT / "benchmarks" / "README.md", ROOT / "docs" / "performance.md")
    assert any(command.split()[2] in page.read_text() for page in pages)


def exist(targets: list[str], experiment: Experiment) -> None:
    """Stages, groups of stages and methods that a command names."""
    trained, methods = experiment.parts, experiment.methods
    keys = {"train": trained, "distill": experiment.students, "sample": methods, "evaluate": methods}
    stages = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    for target in targets:
        stage, at, key = target.partition("@")
        assert key in keys[stage] if at else stage in {*stages, *methods}, target


def by_dvc(command: str, block: Block, folder: Path) -> None:
    """DVC reads its arguments; targets exist; each setting of -S is accepted and changes the experiment."""
    words, experiment = shlex.split(command)[1:], experiment_in(block)
    row = next((name for name in ROWS if name in experiment.methods), "")
    given = parse_args([re.sub(r"\bROW\b", row, word) for word in words])
    if isinstance(given.targets if "targets" in given else None, list) and given.cmd in ("repro", "exp"):
        exist(given.targets, experiment)
    path, before = folder / "experiment.yaml", experiment
    path.write_text(render(experiment))
    for override in getattr(given, "set_param", None) or []:
        ((file, texts),) = to_path_overrides([override]).items()
        assert file in (str(EXPERIMENT), ParamsDependency.DEFAULT_PARAMS_FILE)
        apply_overrides(path, texts)
    changes = read_yaml(path)
    if getattr(given, "set_param", None):
        assert settings.validate(changes, path) != before, "no setting changes"


def with_flags(command: str, block: Block, folder: Path) -> None:
    """A tool that starts servers: its help has the subcommand and every flag; other tests start them for real."""
    words = shlex.split(command)
    text = help_of(*takewhile(lambda word: not word.startswith("-"), words))
    assert all(word.partition("=")[0] in text for word in words if word.startswith("-"))


@cache
def help_of(*subcommand: str) -> str:
    done = subprocess.run([*subcommand, "--help"], capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"})
    assert done.returncode == 0, done.stderr
    return done.stdout


def copied(command: str, block: Block, folder: Path) -> None:
    """What is copied is there."""
    assert (ROOT / [word for word in shlex.split(command)[1:] if word[0] != "-"][0]).exists()


def edited(command: str, block: Block, folder: Path) -> None:
    """Run: what is made of the file is a recipe that extends one which is there."""
    tool, script, source, into, _ = shlex.split(command)
    assert into == ">"
    done = subprocess.run([tool, script, source], cwd=ROOT, capture_output=True, text=True)
    assert YAML(typ="safe").load(done.stdout)["extends"] in named(recipe.RECIPES)


def known_elsewhere(command: str, block: Block, folder: Path) -> None:
    """Run, in the test of this file that names the command."""
    assert command in Path(__file__).read_text().replace("\\n", "\n")


def of_the_container(command: str, block: Block, folder: Path) -> None:
    """No container is built here: the folder in it is the Dockerfile's, the target the Makefile's."""
    words, dockerfile = shlex.split(command), (ROOT / "Dockerfile").read_text()
    mounts = [words[k + 1].partition(":")[2] for k, word in enumerate(words) if word == "-v"]
    assert all(f"WORKDIR {mount}\n" in dockerfile for mount in mounts)
    if "make" in words:
        made(" ".join(words[words.index("make") :]), block, folder)
    arguments = [words[k + 1].partition("=")[0] for k, word in enumerate(words) if word == "--build-arg"]
    assert all(f"ARG {argument}\n" in dockerfile for argument in arguments)


def set_here(command: str, block: Block, folder: Path) -> None:
    """A variable of the shell, which this project or a tool it depends on reads by that name."""
    assert re.fullmatch(r"(export )?(RAY_worker_niceness|[A-Z_]+)=\S+|\. \.venv/bin/activate|chmod 600 \S+", command)


Rule = Callable[[str, Block, Path], None]
RULES: dict[str, Rule] = {
    r"make ": made,
    r"python -m (stages|flows)\.": parsed,
    r"python -m multiscale ": known_elsewhere,
    r"python -m benchmarks\.": exists,
    r"python -c ": known_elsewhere,
    r"dvc ": by_dvc,
    r"git restore \.$": known_elsewhere,
    r"ray ": with_flags,
    r"prefect ": with_flags,
    r"cp ": copied,
    r"sed ": edited,
    r"docker ": of_the_container,
    r"(export )?(RAY_worker_niceness|[A-Z_]+)=|\. \.venv|chmod ": set_here,
}


def rule_of(command: str) -> Rule:
    found = [rule for start, rule in RULES.items() if re.match(start, command)]
    assert found, f"no rule says how this command is checked: {command}"
    return found[0]


def cases() -> list:
    """Every command of every page; what starts the programs of servers is slow."""
    slow = {"ray", "prefect"}
    return [
        pytest.param(*each, id=f"{each[0].name} {each[1]}", marks=[pytest.mark.slow] * (each[1].split()[0] in slow))
        for each in SHELL
    ]


@pytest.mark.filterwarnings("ignore:.*found in sys.modules after import")
@pytest.mark.parametrize("block, command", cases())
def test_a_command_does_what_the_page_says(block, command, tmp_path, monkeypatch):
    variables = dict(re.findall(r"^([A-Z]+)=(\S+)$", block.text, re.MULTILINE))
    for name, value in {**{f"${key}": text for key, text in variables.items()}, **FILLED}.items():
        command = re.sub(rf"{re.escape(name)}\b(?!=)", lambda found, value=value: value, command)
    rule_of(command)(command, block, tmp_path)


def test_no_page_and_no_rule_is_missed():
    assert {"README.md", "docs/index.md", "docs/scaling.md", "docs/ssd.md"} <= {block.page for block in BLOCKS}
    commands = [command for block in BLOCKS for command in block.commands()]
    assert "make demo" in commands and "python -m stages.spectrum 32" in commands and len(commands) > 80
    assert all(any(re.match(start, command) for command in commands) for start in RULES), "a rule without a command"
    assert {block.language for block in BLOCKS} <= {"", "python", "yaml", "text"}
    told = [line.split()[0] for block in BLOCKS if block.language == "text" for line in block.text.splitlines()]
    assert not set(told) & {"dvc", "make", "python", "ray", "git"}, "a command that is fenced as text is not checked"
    with pytest.raises(AssertionError, match="no rule says"):
        rule_of("pip install multiscale")


# --- YAML and Python


@pytest.mark.parametrize("block", [pytest.param(b, id=b.name) for b in BLOCKS if b.language == "yaml"])
def test_yaml_on_a_page_is_valid(block, tmp_path, monkeypatch):
    """As a recipe, or as sections over a recipe that has them; claims as those of the file."""
    given = YAML(typ="safe").load(block.text)
    if "claims" in given:
        shipped = YAML(typ="safe").load(ROOT / "params/claims.yaml")["claims"]
        assert given["claims"].items() <= shipped.items()
        return
    base = {} if "extends" in given else {"extends": "swd-clothing64" if "students" in given else "embedded"}
    folder = tmp_path / "recipes"
    folder.mkdir()
    for path in (ROOT / "params" / "recipes").glob("*.yaml"):
        (folder / path.name).write_bytes(path.read_bytes())
    with (folder / "mine.yaml").open("w") as file:
        YAML().dump(base | given, file)
    monkeypatch.setattr(recipe, "RECIPES", folder)
    made = recipe.experiment_of("mine")
    assert made != recipe.experiment_of((base | given)["extends"]), "nothing changes"


def test_the_signatures_of_a_method_are_those_of_the_example():
    code = "".join((ROOT / "tests" / "toy" / f"{name}.py").read_text() for name in ("parts", "sampler"))
    shown = [block.text for block in BLOCKS if block.page == "docs/adding-a-method.md" and block.language == "python"]
    assert len(shown) == 2 and all(text.splitlines()[0] in code for text in shown)


# --- what is run


@pytest.mark.slow
def test_a_trained_method_is_sampled_as_the_readme_says(trained, tmp_path, monkeypatch):
    (tmp_path / "models").symlink_to(trained / "models")
    monkeypatch.chdir(tmp_path)

    def run(command: str) -> None:
        words = [sys.executable, *shlex.split(command)[1:]]
        done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
        assert done.returncode == 0, done.stderr

    run("python -m multiscale sample models/msf --classes 3 7 --seeds 0-15 --out grid.png")
    run("python -m multiscale sample models/msf --seeds 0-9 --out images/")
    assert Path("grid.png").exists() and len(list(Path("images").glob("class-*-seed-*.png"))) == 100
    run("python -m multiscale export models/msf --to exported/msf")
    assert Path("exported/msf/model_index.json").exists()
    (code,) = (block.text for block in BLOCKS if block.page == "README.md" and block.language == "python")
    names: dict = {}
    exec(code, names)
    assert names["images"].shape == (2, 1, 32, 32) and 0 <= names["images"].min() <= names["images"].max() <= 1


@pytest.mark.slow
def test_a_proposed_schedule_is_accepted_with_what_is_said_to_be_added(trained, tmp_path, monkeypatch):
    """Here the proposal holds 8 px, which the data of the embedded recipe's teacher lack."""
    folder = Pipeline(tmp_path)
    for name in ("params.yaml", "params", "data/latents"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(trained / name)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    lines = folder.run(sys.executable, "-m", "stages.spectrum", "32").splitlines()
    (found,) = (re.search(r"resolutions: (\[.*?\])", line)[1] for line in lines if line.startswith("4 steps"))
    added = [re.match(r"\[.*\](?=: add them to)", line) for line in lines]
    resolutions = sorted({16, 24, 32, *(int(n) for line in added if line for n in re.findall(r"\d+", line[0]))})
    path = tmp_path / "experiment.yaml"
    path.write_text(render(experiment_of("embedded")))
    keys = ("latents.resolutions", "decompose.pyramid.resolutions")
    apply_overrides(path, [f"students.swd.schedule.resolutions={found}", *(f"{key}={resolutions}" for key in keys)])
    settings.validate(read_yaml(path), path)


@pytest.mark.slow
def test_an_experiment_is_undone_by_the_commands_of_the_walk(pipeline: Pipeline):
    pipeline.folder.joinpath(EXPERIMENT).write_text("lr: 1\n")
    pipeline.write(
        """
        train:
          cmd: cp params.yaml model; cp model kid.json
          params: [lr]
          outs: [model]
          metrics: [kid.json: {cache: false}]
        """
    )
    pipeline.run("dvc", "repro")
    pipeline.run("git", "add", "-A")
    pipeline.run("git", "commit", "-qm", "run")
    pipeline.run("dvc", "exp", "run", "--name", "mine", "-S", "lr=2")
    model = pipeline.folder / "model"
    assert model.read_text() == "lr: 2\n"
    (undo, keep) = (block for block in BLOCKS if block.page == "docs/index.md" and "dvc checkout" in block.text + "\n"
                    or block.page == "docs/index.md" and "dvc exp remove" in block.text)  # fmt: skip
    assert undo.commands() == ["git restore .", "dvc checkout"]
    for command in undo.commands():
        pipeline.run(*shlex.split(command))
    assert model.read_text() == "lr: 1\n" and pipeline.is_clean()
    assert pipeline.run("git", "status", "--porcelain") == ""
    listed, applied, removed = (shlex.split(each.replace("NAME", "mine")) for each in keep.commands())
    assert "mine" in pipeline.run(*listed)
    pipeline.run(*applied)
    assert model.read_text() == "lr: 2\n"
    pipeline.run(*removed)
    assert "mine" not in pipeline.run(*listed)


def test_the_settings_that_the_readme_gives_a_sampler_are_not_those_that_it_has_anyway():
    text = (ROOT / "README.md").read_text()
    ssd, msf = re.findall(r"`--set ([^`]+)`", text)
    assert settings_of("ssd", ssd.split()) != settings_of("ssd", [])
    assert all(solver != Solver() for solver in settings_of("msf", msf.split()).scales)


def test_the_token_of_a_cluster_is_its_owners_alone(tmp_path, monkeypatch):
    command = 'python -c "import secrets; print(secrets.token_hex(32))" > ~/.ray/auth_token'
    (tmp_path / ".ray").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert command in (ROOT / "docs" / "scaling.md").read_text()
    subprocess.run(command, shell=True, check=True)
    assert re.fullmatch(r"[0-9a-f]{64}\n", (tmp_path / ".ray" / "auth_token").read_text())


def test_the_readme_names_the_python_and_the_versions_of_the_project():
    needs = (ROOT / "README.md").read_text().partition("## What it needs")[2].partition("\n## ")[0]
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert f"Python | {wanted.removeprefix('>=')} or later" in needs
    assert all(word in needs for word in ("git", "make", "memory", "disk", "GPU", "time"))
