"""`stages.publish`: a folder with the report's tables and pictures, and their place on another page."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from conftest import flipped, sealed
from PIL import Image
from results import FLOORS, METRICS, made

from multiscale.core.intact import Damaged
from multiscale.core.storage import read_sealed_json
from stages import publish
from stages.common.errors import BadInput
from stages.reporting import figures
from stages.reporting.rows import Group

PAGE = "# Ours\n\n<!-- results -->\nof before\n<!-- end of results -->\n\nThe end.\n"


@pytest.fixture
def reported(measured):
    """A project whose report is made."""
    project = measured()
    made(project)
    return project


def test_the_folder_has_the_rows_the_pictures_and_the_page(reported, capsys):
    Path("OURS.md").write_text(PAGE)
    Path("docs").mkdir(exist_ok=True)
    stale = Path("docs/toy/grid-gone.png")
    stale.parent.mkdir(parents=True)
    stale.touch()
    publish.run("docs/toy", page=True, into="OURS.md")
    folder, names = Path("docs/toy"), [*METRICS, *FLOORS]
    assert {path.name for path in folder.glob("grid-*")} == {f"grid-{name}.png" for name in names}
    assert {Image.open(path).mode for path in folder.glob("grid-*")} == {"L"}, "grey images"
    board = pl.read_parquet(folder / "leaderboard.parquet")
    assert {*board["method"]} == {*names} and board["seconds_per_image"].drop_nulls().len() == len(METRICS)
    assert {*json.loads((folder / "measurements.json").read_text())} == {*names}
    findings = json.loads((folder / "claims.json").read_text())
    assert findings == read_sealed_json(Path("reports/timing/claims.json"))
    for name in ("quality-time.png", "training.png", "pairs.csv", "training.csv", "report.html"):
        assert (folder / name).read_bytes() == Path("reports", name).read_bytes()
    text = (folder / "results.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| msf | latents | ")]
    assert len(rows) == 1 and "an abacus" in text and "python -m stages.publish docs/toy" in text
    for name in names:
        assert f"](grid-{name}.png)" in text
    shown = Path("OURS.md").read_text()
    assert shown.startswith("# Ours\n\n<!-- results -->") and shown.endswith("<!-- end of results -->\n\nThe end.\n")
    assert rows[0] in shown and "](docs/toy/quality-time.png)" in shown and "of before" not in shown
    publish.run("docs/toy", into="OURS.md")
    assert Path("OURS.md").read_text() == shown, "the same again"
    assert "docs/toy/results.md: " in capsys.readouterr().out


def test_the_page_has_methods_of_equal_budgets_beside_each_other(reported):
    """They have 256 and 512 training images; then as many each, which makes a table of them."""
    publish.run("docs/toy")
    assert "Fair views" not in Path("docs/toy/results.md").read_text()
    for part in ("msf-0", "msf-1"):
        history = Path("models/msf", part, "history.jsonl")
        history.write_text(history.read_text().replace('"images": 256', '"images": 128'))
        sealed(history.parent)
    made(reported)
    publish.run("docs/toy")
    section = Path("docs/toy/results.md").read_text().partition("## Fair views")[2].partition("## Published claims")[0]
    assert "### At equal training images" in section and "### At equal training FLOP" not in section
    first, second = [line for line in section.splitlines() if line.startswith(("| msf", "| dit"))]
    assert first == "| msf | 256 | 0.1250 +- 0.0200 | - | - | the best |"
    difference = pl.read_csv("docs/toy/pairs.csv").row(0, named=True)
    assert second.startswith("| dit | 256 | 0.2500 +- 0.0100 | +0.1250 | ") and difference["kid"] == -0.125
    low, high = (float(end) for end in second.split(" | ")[4].split(" to "))
    assert high - low == pytest.approx(4 * difference["kid_se"], abs=2e-4)


def test_a_report_of_other_results_is_not_published(reported):
    path = Path("reports/leaderboard.json")
    with flipped(Path("reports/timing/claims.json"), 9, 3), pytest.raises(Damaged, match="claims.json: damaged"):
        publish.run("docs/toy")
    board = json.loads(path.read_text())
    board["msf"]["kid"] += 0.001
    for content in (json.dumps(board), "", "\0"):
        path.write_text(content)
        with pytest.raises(BadInput, match=r"^reports/leaderboard.json: not of the results in place; allowed: those"):
            publish.run("docs/toy")
    assert not Path("docs/toy").exists()


def test_a_page_without_a_place_for_results_is_one_line_and_nothing_is_written(reported):
    Path("OURS.md").write_text("# Ours\n<!-- end of results -->\n<!-- results -->\n")
    with pytest.raises(BadInput, match=r"^OURS.md: has no place for results; allowed: a page with the lines"):
        publish.run("docs/toy", into="OURS.md")
    assert not Path("docs/toy").exists()


def test_the_plot_has_the_other_numbers_of_steps_that_were_timed(tmp_path, monkeypatch):
    row = {"kid_se": 0.01, "works_on": "pixels"}
    steps = [{"steps": 4, "kid": 0.3, "kid_se": 0.02}, {"steps": 6, "kid": 0.25, "kid_se": 0.02}]
    one = row | {"method": "one", "kid": 0.2, "seconds_per_image": 0.8, "steps": steps}
    two = row | {"method": "two", "kid": 0.1, "seconds_per_image": 1.5, "works_on": "latents", "steps": None}
    group = Group({"metric": "EffLite0", "n": 8}, [one | {"seconds_per_image_of_steps": {"4": 0.4}}, two], [])
    seen = []
    monkeypatch.setattr(figures, "front", lambda places: seen.extend(places) or places)
    figures.quality_time([group], tmp_path / "plot.png")
    assert seen == [(0.4, 0.3), (0.8, 0.2), (1.5, 0.1)], "6 steps were not timed"
    assert Image.open(tmp_path / "plot.png").size[0] > 900


def test_bars_of_the_plot_are_over_trainings_where_a_row_has_several(tmp_path, monkeypatch):
    common = {"kid_se": 0.01, "works_on": "pixels", "seconds_per_image_of_steps": {"4": 0.4}}
    steps = [{"steps": 4, "kid": 0.3, "kid_se": 0.02}]
    one = common | {"method": "one", "kid": 0.2, "seconds_per_image": 0.8, "steps": steps, "kid_training_se": 0.25}
    two = common | {"method": "two", "kid": 0.1, "seconds_per_image": 1.5, "kid_training_se": None}
    seen, limits, axes = [], [], figures.plt.Axes
    drawn, limited = axes.errorbar, axes.set_ylim
    monkeypatch.setattr(axes, "errorbar", lambda *args, **how: seen.append(args[3]) or drawn(*args, **how))
    monkeypatch.setattr(axes, "set_ylim", lambda *args, **to: limits.append(to.get("bottom")) or limited(*args, **to))
    figures.quality_time([Group({"metric": "EffLite0", "n": 8}, [one, two], [])], tmp_path / "plot.png")
    assert seen == [(0.02, 0.25), (0.01,)], "the few steps have no spread of their own"
    assert min(each for each in limits if each is not None) < 0.2 - 0.25, "the whole bar is seen"


def test_twelve_methods_have_twelve_colours(tmp_path, monkeypatch):
    common = {"kid_se": 0.01, "works_on": "pixels", "seconds_per_image": 0.5}
    rows = [common | {"method": f"m{index}", "kid": 0.1 + index / 100} for index in range(12)]
    seen, drawn = {}, figures.plt.Axes.plot

    def plot(*args, **how):
        lines = drawn(*args, **how)
        seen.update({how.get("label"): figures.matplotlib.colors.to_hex(line.get_color()) for line in lines})
        return lines

    monkeypatch.setattr(figures.plt.Axes, "plot", plot)
    figures.quality_time([Group({"metric": "EffLite0", "n": 8}, rows, [])], tmp_path / "plot.png")
    assert len({seen[row["method"]] for row in rows}) == 12


def test_the_front_is_what_no_faster_point_beats():
    assert figures.front([(3, 0.2), (1, 0.5), (2, 0.5), (4, 0.3), (5, 0.1)]) == [(1, 0.5), (3, 0.2), (5, 0.1)]
    assert figures.front([(1, 0.5), (1, 0.4)]) == [(1, 0.4)]
