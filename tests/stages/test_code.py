"""The lists of code: what is followed, what a digest leaves out, and what a person reads in the folder."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from conftest import Project

from stages import code
from stages.common.paths import CODE

TREE = {
    "stages/vae.py": "import numpy, stages.near, multiscale.core.seen\n"
    "import multiscale.pack.leaf\nfrom multiscale import tool\n",
    "stages/near.py": "def f():\n    if True:\n        from multiscale.late import g\n    return g\n",
    "stages/schema/data.py": "import multiscale.unseen\n",
    "stages/unseen.py": "x = 1\n",
    "multiscale/core/__init__.py": "x = 1\n",
    "multiscale/core/seen.py": "from . import beside\nfrom ..above import thing\nfrom stages.schema import data\n",
    "multiscale/core/beside.py": "x = 1\n",
    "multiscale/above.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import multiscale.unseen\nelse:\n"
    "    import multiscale.otherwise\n",
    "multiscale/otherwise.py": "x = 1\n",
    "multiscale/late.py": "g = 1\n",
    "multiscale/pack/__init__.py": "x = 1\n",
    "multiscale/pack/leaf.py": "x = 1\n",
    "multiscale/prose.py": '"""Prose."""\n',
    "multiscale/tool/__init__.py": "import multiscale.prose, multiscale.tool.inner\n",
    "multiscale/tool/inner.py": "import stages.vae\n",  # a circle
    "multiscale/unseen.py": "x = 1\n",
    "multiscale/methods/one/settings.py": "DEFAULT = 1\nimport multiscale.late\n",
    "multiscale/methods/one/decomposition.py": "import multiscale.above\n",
    "multiscale/methods/one/sampler.py": "x = 1\n",
    "multiscale/methods/two/settings.py": "x = 1\n",
    "stages/decompose.py": "x = 1\n",
    "stages/sample.py": "x = 1\n",
}


@pytest.fixture
def tree(tmp_path) -> Path:
    """A small project, known by heart."""
    for file, text in TREE.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    return tmp_path


def files(name: str, root: Path) -> list[str]:
    return [line[18:] for line in code.listing(name, root).splitlines()]


def test_a_list_holds_what_a_stage_imports_at_any_depth_and_in_any_form(tree):
    seen = "above core/__init__ core/beside core/seen late otherwise".split()
    seen += "pack/__init__ pack/leaf tool/__init__ tool/inner".split()
    assert files("vae", tree) == [*(f"multiscale/{name}.py" for name in seen), "stages/near.py", "stages/vae.py"]


def test_a_list_of_a_method_holds_what_the_stage_opens_and_the_defaults(tree):
    assert code.names(tree) == [*code.SHARED, "decompose-one", "sample-one"]
    one = "multiscale/methods/one"
    opened = ["multiscale/above.py", f"{one}/decomposition.py", f"{one}/settings.py", "multiscale/otherwise.py"]
    assert files("decompose-one", tree) == [*opened, "stages/decompose.py"]
    opened = ["multiscale/late.py", f"{one}/sampler.py", f"{one}/settings.py", "stages/sample.py"]
    assert files("sample-one", tree) == opened


def test_a_digest_is_that_of_the_code_as_python_writes_it(tree):
    (tree / "stages/sample.py").write_text('"""Prose."""\n\n\nx = (  1 )  # why\n"""of x"""\n')
    *_, line = code.listing("sample-one", tree).splitlines()
    assert line == f"{hashlib.sha256(b'x = 1').hexdigest()[:16]}  stages/sample.py"


@pytest.mark.parametrize(
    "text",
    [
        "def f(x):\n    return x + 2\n",
        "def f(x):\n    return x + 1.0\n",
        "def f(y):\n    return y + 1\n",
        "async def f(x):\n    return x + 1\n",
        "def f(x):\n    x = ''\n    return x + 1\n",
        "def f(x):\n    g()\n    return x + 1\n",
        "@g\ndef f(x):\n    return x + 1\n",
    ],
)
def test_a_digest_changes_with_the_code(text, tree):
    (tree / "stages/sample.py").write_text('def f(x):\n    """Prose."""\n    return x + 1\n')
    before = code.listing("sample-one", tree)
    (tree / "stages/sample.py").write_text(text)
    assert code.listing("sample-one", tree) != before


def test_code_that_only_a_type_checker_reads_is_left_out(tree):
    before = code.listing("vae", tree)
    text = TREE["multiscale/above.py"].replace("import multiscale.unseen", "from multiscale.unseen import x")
    (tree / "multiscale/above.py").write_text(text)
    assert code.listing("vae", tree) == before


def test_a_folder_of_lists_is_written_anew_and_nothing_written_through_its_links(project):
    CODE.mkdir(parents=True)
    Path("kept").write_text("kept")
    (CODE / "vae").symlink_to(Path("kept").absolute())
    (CODE / "train-gone").write_text("")
    assert project.stage("code").returncode == 0
    assert Path("kept").read_text() == "kept"
    assert {path.name: path.read_text() for path in CODE.iterdir()} == {n: code.listing(n) for n in code.names()}


def test_code_that_is_not_python_is_one_line_and_the_lists_stay(sources, working_copy):
    project = Project(working_copy(sources))
    before = project.stage("code"), project.files()
    Path("stages/near.py").write_text("def f(:\n")
    with open("stages/train.py", "a") as opened:
        opened.write("import stages.near\n")
    done = project.stage("code")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: stages/near.py: line 1: ") and "allowed: Python" in done.stderr
    after = project.files()
    assert {name: after[name] for name in before[1] if name.startswith("data/code/")} == {
        name: text for name, text in before[1].items() if name.startswith("data/code/")
    }


def test_the_stage_starts_without_what_takes_seconds(project):
    heavy = "torch numpy pydantic polars ray dvc".split()
    done = project.run("-c", f"import sys, stages.code; sys.exit(any(name in sys.modules for name in {heavy}))")
    assert done.returncode == 0, done.stderr
