"""dvc.yaml tells the truth: what a stage imports and reads is what DVC tracks for it."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import networkx as nx
import pytest
from ruamel.yaml import YAML

from stages import code
from stages.common.paths import EXPERIMENT
from stages.common.reading import read_yaml

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def stages():
    from dvc.repo import Repo

    with Repo(ROOT) as repo:
        return {stage.addressing: stage for stage in repo.index.stages}


def code_of(stage) -> set[str]:
    """The code that a stage declares."""
    return {dep.def_path for dep in stage.deps if dep.def_path.startswith(("data/code", "multiscale", "stages"))}


def test_every_stage_depends_on_the_list_of_its_code_and_on_no_other_code(stages):
    experiment = read_yaml(ROOT / EXPERIMENT)
    sections = {"decompose": "decompose", "train": "parts", "distill": "students", "sample": "methods"}
    lists = code.names(ROOT)
    assert code_of(stages["code"]) == {"multiscale", "stages"}
    for address in stages.keys() - {"code"}:
        verb, _, name = address.partition("@")
        wanted = f"{verb}-{experiment[sections[verb]][name]['kind']}" if verb in sections else verb
        assert code_of(stages[address]) == {f"data/code/{wanted}"} and wanted in lists, address


def of(*kinds: str, verbs: str = "train synthetic distill sample") -> set[str]:
    """The lists of these verbs for methods of these kinds."""
    return {f"{verb}-{kind}" for verb in verbs.split() for kind in kinds} & set(code.names(ROOT))


KINDS = tuple(path.parent.name for path in sorted(ROOT.glob("multiscale/methods/*/settings.py")))
FLOWS = ("msf", "pyramidal", "shift", "swd")
FOLLOWS = {  # the lists that an edit of a file changes
    "multiscale/core/storage.py": set(code.names(ROOT)),
    "multiscale/flow.py": {"timing", "report", *of(*FLOWS)},  # of the noise levels of schedules
    "multiscale/condition.py": {*of(*KINDS), "timing", "report"},
    "multiscale/guidance.py": {*of(*KINDS), "timing", "report"},  # of the theory of score models
    "multiscale/solvers.py": {*of(*FLOWS, "wmgm"), "timing", "report"},
    "multiscale/adversarial.py": {
        *of("swd", "wmgm"),
        "timing",
        "report",
    },  # the report says when a generator has collapsed
    "multiscale/networks/dit.py": {"timing", *of(*KINDS)},  # whose embedding of the time UNets take
    "multiscale/networks/unet.py": {"timing", *of("ssd", "wmgm")},
    "multiscale/networks/autoencoder.py": {
        *("vae", "latents", "floor", "timing", "synthetic-swd", "distill-swd"),
        *of(*KINDS, verbs="sample"),
    },
    "multiscale/decomposition.py": of(*KINDS, verbs="decompose"),
    "multiscale/sampling.py": {"timing", *of("swd", verbs="synthetic distill"), *of(*KINDS, verbs="sample")},
    "multiscale/model.py": {"timing", *of(*KINDS, verbs="sample")},
    "multiscale/timing.py": {"timing", "report"},
    "multiscale/pictures.py": {"evaluate", "floor", *of(*KINDS, verbs="sample")},
    "multiscale/networks/clip.py": {"encoder", "embeddings"},
    "multiscale/networks/text.py": {"encoder", "embeddings"},
    "multiscale/training/loop.py": {"vae", "encoder", "classifier", *of(*KINDS, verbs="train distill")},
    "multiscale/evaluation/features.py": {"reference", "evaluate", "floor"},
    "multiscale/evaluation/memorisation.py": {"reference", "evaluate", "floor"},
    "multiscale/evaluation/classifier.py": {"classifier", "evaluate", "floor"},
    "multiscale/evaluation/prompts.py": {"evaluate", "floor"},
    "multiscale/prompts.py": set(),
    "multiscale/evaluation/metrics.py": {"reference", "evaluate", "floor"},
    "multiscale/methods/msf/sampler.py": {"sample-msf", "timing"},
    "multiscale/methods/msf/preview.py": set(),
    "multiscale/methods/msf/residual.py": {"timing", "report", *of("msf", verbs="decompose train sample")},
    "multiscale/methods/ssd/process.py": {"train-ssd", "sample-ssd", "timing", "report"},
    "multiscale/methods/ssd/theory.py": {"report"},
    "multiscale/methods/ssd/settings.py": {"timing", *of("ssd", verbs="decompose train sample")},  # the defaults
    "multiscale/methods/swd/synthetic.py": {"synthetic-swd"},
    "multiscale/methods/swd/teaching.py": {"synthetic-swd", "distill-swd"},
    "multiscale/methods/wmgm/score.py": {"train-wmgm", "sample-wmgm", "timing", "report"},
    "multiscale/methods/wmgm/settings.py": {"timing", *of("wmgm", verbs="decompose train sample")},
    "multiscale/methods/wmgm/theory.py": {"report"},
    "multiscale/__init__.py": set(),
    "stages/common/cluster.py": set(),
    "stages/code.py": set(),
    "stages/common/extraction.py": {"reference", "evaluate", "floor"},
    "stages/common/previews.py": set(),
    "stages/common/protocol.py": {"evaluate", "floor"},
    "stages/common/trackers.py": set(),
    "stages/recipe.py": set(),
    "stages/schema/__init__.py": set(),
    "stages/schema/claims.py": set(),
    "stages/schema/data.py": set(),
    "stages/schema/prompts.py": set(),
    "stages/datasets/compose.py": {"download"},
    "stages/synthetic.py": {"synthetic-swd"},
    "multiscale/methods/shift/schedule.py": {"timing", *of("shift")},
    "multiscale/methods/shift/teaching.py": {"distill-shift"},
    "multiscale/methods/pyramidal/path.py": {"timing", *of("pyramidal")},
    "multiscale/methods/pyramidal/preview.py": set(),
    "stages/distill.py": {"distill-shift", "distill-swd"},
    "stages/reporting/leaderboard.py": {"report"},
}


@pytest.fixture(scope="module")
def changed_by(tmp_path_factory) -> Callable:
    """Edits files of a copy of the code, and gives the lists that have changed."""
    root = tmp_path_factory.mktemp("code")
    for name in ("multiscale", "stages"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    before = {name: code.listing(name, root) for name in code.names(root)}

    def changed_by(edit: Callable[[str], str], *files: str) -> set[str]:
        texts = {file: (root / file).read_text() for file in files}
        for file, text in texts.items():
            assert edit(text) != text, file
            (root / file).write_text(edit(text))
        now = {name: code.listing(name, root) for name in code.names(root)}
        for file, text in texts.items():
            (root / file).write_text(text)
        assert now.keys() == before.keys()
        return {name for name in now if now[name] != before[name]}

    return changed_by


@pytest.mark.parametrize("file", FOLLOWS)
def test_an_edit_of_code_changes_the_lists_of_the_stages_that_import_it(file, changed_by):
    assert changed_by(lambda text: text + "\nEDITED = True\n", file) == FOLLOWS[file]


def test_an_edit_of_prose_or_layout_changes_no_list(changed_by):
    assert not changed_by(lambda text: re.sub(r'"""(?=\w)', '"""In other words: ', text), *FOLLOWS)
    assert not changed_by(lambda text: text.replace("\n\n", "\n\n\n\n# a comment\n") + "'more prose'\n", *FOLLOWS)


def test_a_stage_reads_only_the_sections_that_dvc_tracks_for_it(stages):
    for address in stages.keys() - {"code"}:
        stage = stages[address]
        tree = ast.parse((ROOT / "stages" / f"{address.partition('@')[0]}.py").read_text())
        nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
        read = {node.attr for node in nodes if ast.unparse(node.value) == "params"}
        tracked = {key.split(".")[0] for dep in stage.deps for key in getattr(dep, "params", [])}
        if {"data/images.parquet", "data/pixels"} & {dep.def_path for dep in stage.deps}:
            tracked.add("data")  # which decides these images
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
    ignored = subprocess.run(["git", "check-ignore", "-q", out.def_path], cwd=ROOT).returncode == 0
    assert ignored, "a fresh clone would find the output there, and measure no seconds"


def test_what_is_measured_on_one_machine_is_known_to_neither_git_nor_dvc(stages):
    measured = ["reports/timing/sampling.json", "reports/timing/msf-0.json", "reports/timing/sample-msf.json"]
    measured += ["reports/timing/claims.json"]
    measured += ["reports/report.html", "reports/report.md", "reports/quality-time.png"]
    known = [*(each for stage in stages.values() for each in (*stage.outs, *stage.deps))]
    for path in map(Path, measured):
        for each in known:
            if (place := Path(each.def_path)) != Path("params.yaml"):
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
        methods = {name.split("/")[2] for name in code.imports(file, ROOT) if name.startswith("multiscale/methods/")}
        used = methods - {"__init__.py"}
        own = {file.split("/")[2]} if file.startswith("multiscale/methods/") else set()
        assert used <= own, f"{file} imports {sorted(used - own)}"


def test_core_stands_on_nothing_and_stages_know_no_flow():
    for folder, allowed in (("multiscale/core", ("multiscale/core/",)), ("stages", ("multiscale/", "stages/"))):
        for path in (ROOT / folder).rglob("*.py"):
            file = path.relative_to(ROOT).as_posix()
            used = code.imports(file, ROOT)
            up = {name for name in used if not name.startswith(allowed) and name != "multiscale/__init__.py"}
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
    allowed = {
        f"multiscale.core.{name}" for name in ("settings", "storage", "intact", "device", "temporary", "terminal")
    }
    for path in (ROOT / "flows").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            used = {name for name in names if name and name.split(".")[0] in ("torch", "multiscale", "safetensors")}
            assert used <= allowed, f"{path} imports {sorted(used - allowed)}"


@pytest.mark.parametrize("name", ["x; touch pwn; #", "$(touch pwn)", "a b", "* | touch pwn"])
def test_a_name_is_no_command_of_the_shell(name, tmp_path):
    """DVC writes names into commands before the stage `code` has refused them, if it is asked for one stage alone."""
    stages = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    lines = [line for stage in stages.values() if "${" in (line := stage.get("do", stage)["cmd"])]
    assert len(lines) == 11
    for line in lines:
        command = re.sub(r"\$\{.*?\}", lambda _: name, line).replace("python -m", "printf '%s\\n'")
        done = subprocess.run(["/bin/sh", "-c", command], cwd=tmp_path, capture_output=True, text=True)
        assert done.stdout.splitlines()[1:] == [name] and not list(tmp_path.iterdir()), line
