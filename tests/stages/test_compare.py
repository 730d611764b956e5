"""`stages.compare`, in a small project, on measurements whose differences are worked out by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from conftest import ROOT, Pipeline

from stages import compare
from stages.common.errors import BadInput

STAGE = """
a:
  cmd: touch a
  outs: [a]
"""


def measured(name: str, kid: float, error: float, **protocol: object) -> None:
    path = Path(f"reports/measurements/{name}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"kid": kid, "kid_se": error, "protocol": {"metric": "EffLite0", "n": 40} | protocol}))


@pytest.fixture
def compared(pipeline, capsys):
    """A committed baseline of two methods; gives what the command prints, line by line, in fields of two spaces."""
    measured("msf", 0.25, 0.03)
    measured("dit", 0.125, 0.01)
    pipeline.write(STAGE)
    pipeline.run("dvc", "repro", "-q")
    pipeline.run("git", "commit", "-qam", "measured")

    def compared(*revisions: str) -> list[list[str]]:
        compare.run(revisions)
        lines = capsys.readouterr().out.splitlines()
        return [[field.strip() for field in line.split("  ") if field.strip()] for line in lines]

    return compared


def test_a_difference_is_in_standard_errors_of_the_difference(pipeline: Pipeline, compared):
    measured("msf", 0.35, 0.04)  # 0.1 above, of sqrt(0.03^2 + 0.04^2) = 0.05
    pipeline.run("dvc", "exp", "save", "-n", "bold")
    assert compared() == [
        ["KID-EffLite0", "HEAD", "bold"],
        ["dit", "0.1250 +- 0.0100", "0.1250 +- 0.0100 (same)"],
        ["msf", "0.2500 +- 0.0300", "0.3500 +- 0.0400 (+2.0 se)"],
    ], "the workspace is the experiment: no column of its own"
    assert compared("bold", "HEAD")[2] == ["msf", "0.3500 +- 0.0400", "0.2500 +- 0.0300 (-2.0 se)"]


def test_other_methods_and_protocols_are_shown_and_not_compared(compared):
    measured("msf", 0.35, 0.04, n=50)
    measured("ssd", 0.5, 0.01)
    Path("reports/measurements/dit.json").unlink()
    assert compared() == [
        ["KID-EffLite0", "HEAD", "workspace"],
        ["dit", "0.1250 +- 0.0100", "-"],
        ["msf", "0.2500 +- 0.0300", "0.3500 +- 0.0400 (other protocol)"],
        ["ssd", "-", "0.5000 +- 0.0100"],
    ]


@pytest.mark.parametrize("revision, said", [("none", "Git revision 'none'; allowed: "), ("HEAD~1", "run `dvc repro`")])
def test_a_revision_without_measurements_is_refused(pipeline, compared, revision, said):
    pipeline.run("git", "rm", "-qr", "reports")
    pipeline.run("git", "commit", "-qm", "empty")
    pipeline.run("git", "commit", "-qm", "empty too", "--allow-empty")
    with pytest.raises(BadInput, match=f"^{revision}: .*{said}"):
        compared(revision)


def test_plots_are_drawn_without_a_network_by_the_scripts_that_dvc_would_link_to(pipeline: Pipeline):
    from dvc_render.vega import VegaRenderer

    for name in (".dvc/config", "stages/templates/plots.html"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes((ROOT / name).read_bytes())
    Path("loss.csv").write_text("images,loss\n1,0.5\n2,0.25\n")
    Path("dvc.yaml").write_text("plots: [{Loss: {x: images, y: {loss.csv: loss}}}]\n")
    pipeline.run("dvc", "plots", "show")
    page = Path("dvc_plots/index.html").read_text()
    assert 'vegaEmbed("#' in page or "vegaEmbed('#" in page
    assert page.count("<script") == 4 and "<script src" not in page and "<link" not in page
    linked = re.findall(r'/npm/([^"]+)"', VegaRenderer.SCRIPTS)
    assert len(linked) == 3 and all(name in page.partition("<script")[0] for name in linked)
