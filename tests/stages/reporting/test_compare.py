"""`stages.compare`, in a small project, on measurements whose differences are worked out by hand."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
from conftest import ROOT, Pipeline
from results import METRICS, PROTOCOL, REST, put_json

from multiscale.core.storage import write_sealed_json
from stages import compare
from stages.common.errors import BadInput
from stages.reporting.page import CHARTS

STAGE = """
a:
  cmd: touch a
  outs: [a]
"""


def measured(name: str, kid: float, error: float, **protocol: object) -> None:
    found = {"kid": kid, "kid_se": error, "protocol": {"metric": "EffLite0", "n": 40} | protocol}
    write_sealed_json(Path(f"reports/measurements/{name}.json"), found)


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
    measured("sgm", 0.75, 0.01, metric="Inception")
    Path("reports/measurements/dit.json").unlink()
    assert compared() == [
        ["KID-EffLite0", "HEAD", "workspace"],
        ["dit", "0.1250 +- 0.0100", "-"],
        ["msf", "0.2500 +- 0.0300", "0.3500 +- 0.0400 (other protocol)"],
        ["sgm", "-", "0.7500 +- 0.0100 (KID-Inception)"],
        ["ssd", "-", "0.5000 +- 0.0100"],
    ]


def test_a_damaged_measurement_of_any_revision_is_refused(pipeline: Pipeline, compared):
    path = Path("reports/measurements/msf.json")
    path.write_text(path.read_text().replace("0.25", "0.21"))
    pipeline.run("git", "commit", "-qam", "damaged")
    for revision in ("HEAD", "workspace"):
        with pytest.raises(BadInput, match=f"^{revision}: {path}: damaged: .*; allowed: the file as it was measured"):
            compare.run([revision])
    assert compared("HEAD~1")


def ranked(**kid: float) -> None:
    """The leaderboard of the methods, as `report` writes it; the floor and dit are the same at every revision."""
    rows = {}
    for name, value in kid.items():
        kind = "floor" if name == "real" else "method"
        protocol = PROTOCOL | {"n": 50 if name == "few" else PROTOCOL["n"]}
        cost = {"network_calls": 4.0, "parameters": 10, "train_images": 96, "flops_per_image": 2e9}
        about = {"method": name, "kind": kind, "recipe": "tiny", "works_on": "latents", "protocol": protocol}
        spread = {f"{key}{end}": None for key in ("kid", "kid_second") for end in ("_spread", "_training_se")}
        trained = spread | {"trainings": 1, "copies": False}
        rows[name] = REST | METRICS["dit"] | about | cost | trained | {"kid": value}
    put_json("reports/leaderboard.json", rows)


def test_the_page_draws_the_rows_of_all_revisions_and_keeps_protocols_apart(pipeline: Pipeline, compared):
    ranked(dit=0.125, msf=0.25, real=0.01)
    pipeline.run("git", "add", "-A")
    pipeline.run("git", "commit", "-qm", "ranked")
    measured("msf", 0.35, 0.04)
    ranked(dit=0.125, msf=0.35, few=0.5, real=0.01)
    assert compared()[-1] == ["page: reports/compare.html"]
    page = Path("reports/compare.html").read_text()
    (data,) = re.findall(r'<script type="application/json" id="data">(.*)</script>', page)
    boards = {board["n"]: board for board in json.loads(data)["boards"]}
    points = {n: [(point["method"], point["kid"]) for point in board["points"]] for n, board in boards.items()}
    here = [("dit (HEAD)", 0.125), ("msf (HEAD)", 0.25), ("msf (workspace)", 0.35)]
    assert points == {PROTOCOL["n"]: here, 50: [("few (workspace)", 0.5)]}, "what is the same stands there once"
    assert all(point["gflops_per_image"] == 2 for board in boards.values() for point in board["points"])
    assert [row["method"] for row in boards[50]["floors"]] == ["real"]
    assert "Rows of 2 protocols are kept apart" in page and "<script src" not in page and '<link rel="style' not in page


@pytest.mark.slow
def test_the_page_of_revisions_works_in_a_browser(pipeline: Pipeline, compared, browser):
    ranked(dit=0.125, msf=0.25, real=0.01)
    compared("workspace")
    browser.call("Emulation.setDeviceMetricsOverride", width=390, height=900, deviceScaleFactor=1, mobile=True)
    browser.go(Path("reports/compare.html").absolute().as_uri())
    browser.shows("document.body && document.body.dataset.ready === 'yes'")
    assert browser.value("document.querySelectorAll('.chart svg').length") == 1
    browser.click("#board-0 th:nth-child(4) button")
    assert browser.value("document.querySelector('#board-0 tbody').rows[0].cells[0].textContent") == "dit (workspace)"
    browser.click("#theme")
    assert browser.value("document.documentElement.scrollWidth <= innerWidth") and browser.value("faults") == []


@pytest.mark.parametrize("revision, said", [("none", "Git revision 'none'; allowed: "), ("HEAD~1", "run `dvc repro`")])
def test_a_revision_without_measurements_is_refused(pipeline, compared, revision, said):
    pipeline.run("git", "rm", "-qr", "reports")
    pipeline.run("git", "commit", "-qm", "empty")
    pipeline.run("git", "commit", "-qm", "empty too", "--allow-empty")
    with pytest.raises(BadInput, match=f"^{revision}: .*{said}"):
        compared(revision)


def test_plots_are_drawn_without_a_network_by_the_scripts_that_dvc_would_link_to(pipeline: Pipeline):
    from dvc_render.vega import VegaRenderer

    for name in (".dvc/config", "stages/reporting/templates/plots.html"):
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


def test_the_scripts_of_the_charts_are_those_of_the_npm_packages():
    """Byte for byte, but for the last line of each file, which names a map of its sources that is not there."""
    published = {  # SHA-256 of build/NAME.min.js of vega@5.20.2, vega-lite@5.2.0 and vega-embed@6.18.2
        "vega": "4794d0169cb1f3ebad8117fe98ba5bd652dd725905ec0384e832391dbccb03be",
        "vega-lite": "d73157451b3978015ab31dacd55ff90d986ab8663fc0abed50f97b3cd90002cb",
        "vega-embed": "1ba9826431ddc9805e815ad92acc811c819f2bfd32bda2a128b8c4b5070fab5e",
    }
    held = re.findall(r"<script>\n(.*?)</script>", CHARTS.read_bytes().decode(), re.DOTALL)
    whole = [f"{script}//# sourceMappingURL={name}.min.js.map\n" for name, script in zip(published, held, strict=True)]
    assert [hashlib.sha256(script.encode()).hexdigest() for script in whole] == list(published.values())
