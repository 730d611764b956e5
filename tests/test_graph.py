"""dvc.yaml tells the truth: what a stage imports and reads is what DVC tracks for it."""

from __future__ import annotations

import ast
import re
import subprocess
from functools import cache
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).parent.parent
# The schema only says what is allowed: experiment.yaml spells out the shared sections (settings.load insists), and the
# defaults of a method's sections stand in its folder, which DVC tracks.
PURE_VALIDATION = re.compile(r"stages/schema/")
# Ray carries the same work to other processes; `multiscale.load` is for people, stages call what it calls.
NEUTRAL = ("stages/cluster.py", "multiscale/__init__.py")
# Shared by some kinds of parts, but a group of stages has one list.
COARSE = {f"multiscale/{name}.py" for name in ("adversarial", "flow", "solvers", "networks/unet")}


def module_file(name: str) -> str | None:
    path = Path(*name.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if (ROOT / candidate).exists():
            return candidate.as_posix()
    return None


@cache
def imports(file: str) -> frozenset[str]:
    """Project files that a file imports, at any depth of its code, typing-only imports aside."""
    found = set()

    class Visitor(ast.NodeVisitor):
        def visit_If(self, node):
            if ast.unparse(node.test) != "TYPE_CHECKING":
                self.generic_visit(node)

        def visit_Import(self, node):
            found.update(alias.name for alias in node.names)

        def visit_ImportFrom(self, node):
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)

    Visitor().visit(ast.parse((ROOT / file).read_text()))
    files = {module_file(name) for name in found if name.split(".")[0] in ("flows", "stages", "multiscale")}
    return frozenset(files - {None})


def closure(*starts: str) -> set[str]:
    todo, seen = list(starts), set()
    while todo:
        file = todo.pop()
        if file not in seen and file not in NEUTRAL and not PURE_VALIDATION.match(file):
            seen.add(file)
            todo += imports(file)
    return seen


def matters(file: str) -> bool:
    """Package markers hold no code; the methods' one holds the loader by name."""
    return not file.endswith("__init__.py") or len(ast.parse((ROOT / file).read_text()).body) > 1


@pytest.fixture(scope="module")
def stages():
    from dvc.repo import Repo

    with Repo(ROOT) as repo:
        return {stage.addressing: stage for stage in repo.index.stages}


def dependencies(stage) -> dict[str, set[str]]:
    """The code that a stage declares: a file or folder of dvc.yaml -> the files it stands for."""
    paths = {
        dep.def_path: ROOT / dep.def_path for dep in stage.deps if dep.def_path.startswith(("stages", "multiscale"))
    }
    return {
        name: {file.relative_to(ROOT).as_posix() for file in ([path] if path.is_file() else path.rglob("*.py"))}
        for name, path in paths.items()
    }


def imported(address: str, stage) -> set[str]:
    """The code that a stage really imports, its method's module included."""
    verb = address.partition("@")[0]
    entries = {"decompose": ["decomposition"], "train": ["parts"], "distill": ["parts", "teaching"]}
    modules = [
        f"{name}/{entry}.py"
        for name in dependencies(stage)
        for entry in (entries | {"sample": ["sampler"]}).get(verb, [])
    ]
    used = [module for module in modules if (ROOT / module).exists()]
    if verb == "timing":  # which runs the sampler of every method
        used += [path.relative_to(ROOT).as_posix() for path in ROOT.glob("multiscale/methods/*/sampler.py")]
    return {file for file in closure(f"stages/{verb}.py", *used) if matters(file)}


def test_every_stage_declares_the_code_that_it_imports(stages):
    for address, stage in stages.items():
        missing = imported(address, stage) - set().union(*dependencies(stage).values())
        assert not missing, f"{address} lacks {sorted(missing)}"


def test_no_stage_declares_code_that_it_does_not_import(stages):
    for address, stage in stages.items():
        needed = imported(address, stage)
        for name, files in dependencies(stage).items():
            assert files & needed or name in COARSE, f"{address} would rerun for nothing after a change of {name}"


PARTS = {"train", "distill", "sample", "timing"}
FOLLOWS = {  # what an edit of a file re-runs: whole groups of stages, or single ones
    "multiscale/flow.py": PARTS,
    "multiscale/guidance.py": {*PARTS, "report"},  # of the theory of score models
    "multiscale/solvers.py": {*PARTS, "report"},
    "multiscale/adversarial.py": {*PARTS, "report"},  # the report says when a generator has collapsed
    "multiscale/networks/dit.py": PARTS,
    "multiscale/networks/unet.py": PARTS,
    "multiscale/decomposition.py": {"decompose"},
    "multiscale/sampling.py": {"distill", "sample", "timing"},
    "multiscale/timing.py": {"timing", "report"},
    "multiscale/pictures.py": {"sample", "evaluate", "floor"},
    "multiscale/networks/autoencoder.py": {"vae", "latents", "floor", "distill", "sample", "timing"},
    "multiscale/training/loop.py": {"vae", "classifier", "train", "distill"},
    "multiscale/evaluation/features.py": {"reference", "evaluate", "floor"},
    "multiscale/evaluation/memorisation.py": {"reference", "evaluate", "floor"},
    "multiscale/evaluation/classifier.py": {"classifier", "evaluate", "floor"},
    "multiscale/evaluation/metrics.py": {"evaluate", "floor"},
    "multiscale/methods/ssd/process.py": {
        "decompose@pixels",
        *(f"{verb}@{method}" for verb in ("train", "sample") for method in ("ddpm", "ssd-2l", "ssd-4l")),
        "timing",
    },
    "multiscale/methods/wmgm/theory.py": {
        "decompose@wavelet",
        *("train@wmgm-low", "train@wmgm-details", "train@sgm", "sample@wmgm", "sample@sgm"),
        *("timing", "report"),
    },
    "stages/cluster.py": set(),
    "stages/schema/__init__.py": set(),
    "stages/distill.py": {"distill"},
    "stages/leaderboard.py": {"report"},
}


@pytest.mark.parametrize("file", FOLLOWS)
def test_an_edit_of_a_file_reruns_what_depends_on_it(file, stages):
    assert (ROOT / file).exists()
    rerun = {address for address, stage in stages.items() if file in set().union(*dependencies(stage).values())}
    whole = {address for address in stages if address.partition("@")[0] in FOLLOWS[file]}
    assert rerun == whole | {address for address in FOLLOWS[file] if "@" in address}


def test_a_stage_reads_only_the_sections_that_dvc_tracks_for_it(stages):
    for address, stage in stages.items():
        tree = ast.parse((ROOT / "stages" / f"{address.partition('@')[0]}.py").read_text())
        nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
        read = {node.attr for node in nodes if ast.unparse(node.value) == "params"}
        tracked = {key.split(".")[0] for dep in stage.deps for key in getattr(dep, "params", [])}
        # `run` decides speed alone; which parts a method has is what DVC's graph says, too.
        assert read - {"run", "parts_of", "trained"} <= tracked, f"{address} reads {sorted(read - tracked)} untracked"
        assert read, f"{address} reads no settings"


@pytest.mark.parametrize(("method", "decodes"), [("ddpm", False), ("wmgm", False), ("msf", True), ("swd", True)])
def test_only_methods_on_latents_wait_for_the_autoencoder(method, decodes):
    from dvc.repo import Repo

    with Repo(ROOT) as repo:
        graph = repo.index.graph
        stages = {stage.addressing: stage for stage in graph}
        needs = {stage.addressing for stage in nx.descendants(graph, stages[f"evaluate@{method}"])}
    assert ("vae" in needs) == decodes


def test_seconds_are_measured_after_all_else_and_before_the_report(stages):
    from dvc.repo import Repo

    with Repo(ROOT) as repo:
        graph = repo.index.graph
        place = {stage.addressing: stage for stage in graph}
        needs = {
            name: {stage.addressing for stage in nx.descendants(graph, place[name])} for name in ("timing", "report")
        }
    assert needs["timing"] == set(stages) - {"timing", "report"}, "nothing of the pipeline runs beside it"
    assert needs["report"] == set(stages) - {"report"}
    (out,) = stages["timing"].outs
    assert out.def_path in {dep.def_path for dep in stages["report"].deps}


def test_what_is_measured_on_one_machine_is_known_to_neither_git_nor_dvc(stages):
    measured = ["reports/timing/sampling.json", "reports/timing/msf-0.json", "reports/timing/sample-msf.json"]
    measured += ["reports/report.html", "reports/report.md", "reports/quality-time.png"]
    known = [*(each for stage in stages.values() for each in (*stage.outs, *stage.deps))]
    for path in map(Path, measured):
        for each in known:
            if (place := Path(each.def_path)) != Path("params/experiment.yaml"):
                assert place != path and place not in path.parents, f"DVC tracks {path} as or in {place}"
        assert subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT).returncode == 0, f"git takes {path}"
    assert not subprocess.run(["git", "ls-files", *measured], cwd=ROOT, capture_output=True).stdout


def test_the_science_imports_no_orchestration():
    banned = {"prefect", "dvc", "ray", "polars", "stages", "flows"}
    for path in (ROOT / "multiscale").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not banned & {name.split(".")[0] for name in names if name}, f"{path} reaches upwards"


def test_no_method_imports_another_and_nothing_shared_imports_a_method():
    for path in (ROOT / "multiscale").rglob("*.py"):
        file = path.relative_to(ROOT).as_posix()
        methods = {name.split("/")[2] for name in imports(file) if name.startswith("multiscale/methods/")}
        used = methods - {"__init__.py"}
        own = {file.split("/")[2]} if file.startswith("multiscale/methods/") else set()
        assert used <= own, f"{file} imports {sorted(used - own)}"


def test_core_stands_on_nothing_and_stages_know_no_flow():
    for folder, allowed in (("multiscale/core", ("multiscale/core/",)), ("stages", ("multiscale/", "stages/"))):
        for path in (ROOT / folder).rglob("*.py"):
            file = path.relative_to(ROOT).as_posix()
            up = {name for name in imports(file) if not name.startswith(allowed) and name != "multiscale/__init__.py"}
            assert not up, f"{file} imports {sorted(up)}"


def test_the_science_reads_nothing_from_the_environment():
    """What decides a result is in the settings, where DVC and the checkpoints' keys see it."""
    read = {
        (path.name, name)
        for path in (ROOT / "multiscale").rglob("*.py")
        for name in re.findall(r"""(?:environ(?:\.get\(|\[)|getenv\()["'](\w+)""", path.read_text())
    }
    assert not read


def test_flows_touch_no_tensors():
    allowed = {"multiscale.core.settings", "multiscale.core.storage", "multiscale.core.device"}
    for path in (ROOT / "flows").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            used = {name for name in names if name and name.split(".")[0] in ("torch", "multiscale", "safetensors")}
            assert used <= allowed, f"{path} imports {sorted(used - allowed)}"
