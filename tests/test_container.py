"""What can be known of the container without building it: its Python, its user, and that what it names exists."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib

import pytest
from conftest import ROOT
from packaging.specifiers import SpecifierSet
from pathspec import GitIgnoreSpec

INSTRUCTIONS = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text())
DEVCONTAINER = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())


def of(instruction: str) -> list[str]:
    """The arguments of all instructions of one kind."""
    return re.findall(rf"^{instruction} +(.+)$", INSTRUCTIONS, re.MULTILINE)


def test_the_images_python_is_the_one_that_the_versions_were_installed_with():
    (python,) = re.findall(r"^FROM python:(\d+\.\d+)-", INSTRUCTIONS, re.MULTILINE)
    assert f"(Python {python}, " in (ROOT / "constraints.txt").read_text().partition("\n")[0]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert python in SpecifierSet(project["requires-python"])


def test_an_ordinary_user_runs_everything_but_the_installation_of_the_tools():
    added = re.search(r"useradd .*--uid (\d+) (\w+)", INSTRUCTIONS)
    assert of("USER") == [added[1]] and int(added[1]) >= 1000
    assert DEVCONTAINER["remoteUser"] == added[2]
    assert of("COPY") == [f"--chown={added[1]}:{added[1]} . ."]
    before, after = INSTRUCTIONS.split("\nUSER ")
    assert "pip" not in before and "apt-get" not in after


def test_the_targets_that_are_made_exist():
    made = re.findall(r'(?:RUN |")make[", ]+([a-z]+)', f"{INSTRUCTIONS}\nRUN {DEVCONTAINER['postCreateCommand']}")
    for target in made:
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert made == ["install", "demo", "install"]
    stages = [line.partition(" AS ")[2] for line in of("FROM")]
    assert DEVCONTAINER["build"]["target"] in stages


def test_the_image_leaves_out_nothing_that_git_tracks():
    """Git would take it for deleted, and DVC would refuse experiments."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no git repository")
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    rooted = (line if line.startswith("**") else re.sub("^(!?)", r"\1/", line) for line in patterns)
    ignored = GitIgnoreSpec.from_lines(rooted)
    assert list(ignored.match_files(listed.stdout.splitlines())) == []
    assert (
        ignored.match_file("data/raw/mine/a.png")
        and ignored.match_file("models/msf/msf-0/config.json")
        and ignored.match_file("stages/__pycache__/a.pyc")
    )
