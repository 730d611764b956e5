"""Lists the source code of each stage in data/code: one file per stage, or per method where it runs a method's code.

It runs before all other stages, and after each edit of params.yaml: settings that are not allowed are refused here.

Each line has the digest and the path of a source file that the stage imports, directly or through others. A stage
depends only on its own list, so an edit re-runs the stages whose result it can change. The digest ignores comments,
docstrings and layout.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import shutil
import sys
from collections.abc import Iterable
from functools import cache
from importlib.util import resolve_name
from pathlib import Path
from typing import Any

from multiscale.core.terminal import announce
from stages.common.errors import BadInput
from stages.common.harness import guarded
from stages.common.paths import CODE

SHARED = (
    *("download", "vae", "latents", "captions", "encoder", "embeddings"),
    *("classifier", "reference", "evaluate", "floor", "timing", "report"),
)
# The other stages open modules of a method by name. Settings that are left out have the defaults of its `settings`, for
# parts, students and methods also of the models that `settings` imports; decompositions have plain values only.
OPENED = {
    "decompose": ("decomposition",),
    "train": ("settings", "parts"),
    "synthetic": ("settings", "synthetic"),
    "distill": ("settings", "parts", "teaching"),
    "sample": ("settings", "sampler"),
}
# What decides no result: the schema says what is allowed (experiment.yaml spells out what the methods share), Ray
# carries the same work to other processes, previews, trackers and `multiscale.load` are for people, and this file only
# compares.
NEUTRAL = (
    "multiscale/__init__.py",
    "stages/code.py",
    "stages/schema/",
    *(f"stages/common/{name}.py" for name in ("cluster", "previews", "trackers")),
)
TEMPLATES = ("parts.html.j2", "plots.html", "report.css", "report.html.j2", "report.js")
SHOWN = {"report": [f"stages/reporting/templates/{name}" for name in TEMPLATES]}  # not Python
PROJECT = ("flows", "multiscale", "stages")


class _Reader(ast.NodeTransformer):
    """Removes what never runs from a module, and notes the names that it imports, at any depth."""

    def __init__(self, package: str):
        self.package = package
        self.imported: set[str] = set()

    def visit(self, node: ast.AST) -> Any:
        return node if isinstance(node, ast.expr) else super().visit(node)  # imports and prose are statements

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        """A string that stands alone is prose: a docstring, or the comment of a setting."""
        return None if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str) else node

    def visit_If(self, node: ast.If) -> ast.AST:
        if getattr(node.test, "id", getattr(node.test, "attr", None)) == "TYPE_CHECKING":
            node.body = []
        return self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> ast.Import:
        self.imported |= {alias.name for alias in node.names}
        return node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom:
        module = resolve_name("." * node.level + (node.module or ""), self.package)
        self.imported |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
        return node


@cache
def _read(text: str, package: str) -> tuple[str, frozenset[str]]:
    """The code of a module without prose and layout, and where the modules of the project may lie that it imports."""
    reader = _Reader(package)
    code = ast.unparse(reader.visit(ast.parse(text)))
    paths = [Path(*name.split(".")) for name in reader.imported if name.split(".")[0] in PROJECT]
    around = {path for inner in paths for path in (inner, *inner.parents[:-1])}
    files = {file for path in around for file in (path.with_suffix(".py"), path / "__init__.py")}
    return code, frozenset(file.as_posix() for file in files)


def _module(file: str, root: Path) -> tuple[str, frozenset[str]]:
    try:
        return _read((root / file).read_text(), ".".join(Path(file).parent.parts))
    except SyntaxError as error:
        raise BadInput(f"{file}: line {error.lineno}: {error.msg}; allowed: Python code") from None


def imports(file: str, root: Path = Path()) -> set[str]:
    """The project's files that a file imports, at any depth of its code, the packages around them included."""
    return {found for found in _module(file, root)[1] if (root / found).exists()}


def closure(starts: Iterable[str], root: Path = Path()) -> set[str]:
    """Files with all that they import, directly or through others, but for what decides no result."""
    todo, seen = list(starts), set[str]()
    while todo:
        file = todo.pop()
        if file not in seen and not file.startswith(NEUTRAL):
            seen.add(file)
            todo += imports(file, root)
    return seen


def names(root: Path = Path()) -> list[str]:
    """The names of all lists: STAGE, or STAGE-KIND for each method that has the modules that the stage opens."""
    return [
        *SHARED,
        *(
            f"{stage}-{kind}"
            for stage, modules in OPENED.items()
            for kind in _kinds(root)
            if all((root / f"multiscale/methods/{kind}/{module}.py").exists() for module in modules)
        ),
    ]


def _kinds(root: Path) -> list[str]:
    """The folders of the methods."""
    return sorted(path.parent.name for path in root.glob("multiscale/methods/[!_]*/settings.py"))


def listing(name: str, root: Path = Path()) -> str:
    """The list of one name, from the files below `root` as they are now. Raises BadInput for one that is not Python."""
    stage, _, kind = name.partition("-")
    kinds = _kinds(root) if stage == "timing" else [kind] if kind else []  # timing samples from every method
    modules = OPENED["sample" if stage == "timing" else stage] if kinds else ()
    opened = [f"multiscale/methods/{kind}/{module}.py" for kind in kinds for module in modules]
    defaults = {f"multiscale/methods/{kind}/settings.py" for kind in kinds}
    files = closure([f"stages/{stage}.py", *opened], root) | defaults
    code = {file: _module(file, root)[0] for file in sorted(files)}
    code |= {path: (root / path).read_text() for path in SHOWN.get(stage, ())}
    return "".join(f"{hashlib.sha256(text.encode()).hexdigest()[:16]}  {file}\n" for file, text in code.items() if text)


def main() -> None:
    announce("loading torch, to check the settings")
    from stages.common import settings  # here, because flows import this module without torch

    settings.load()  # a setting that is refused is refused here, before any other stage deletes what it made
    lists = {name: listing(name) for name in names()}
    shutil.rmtree(CODE, ignore_errors=True)  # its files may be links into DVC's cache
    CODE.mkdir(parents=True)
    for name, text in lists.items():
        (CODE / name).write_text(text)


if __name__ == "__main__":
    argparse.ArgumentParser(
        prog=f"python -m stages.{Path(sys.argv[0]).stem}",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    guarded(main)
