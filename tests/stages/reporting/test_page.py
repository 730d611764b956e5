"""The page in a real browser: it asks for nothing, draws, sorts, filters, changes its theme and shows its pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from browser import Browser
from results import METRICS

from stages.reporting import fair, gallery, page, pairs, views
from stages.reporting.pairs import Difference
from stages.reporting.rows import Group

BOARD = "document.querySelector('#board-0')"
CELLS = "[...%s.tBodies[0].rows].filter(row => !row.hidden).map(row => row.cells[0].textContent)"


def opened(browser: Browser, width: int = 1400) -> None:
    """Opens the report, and waits until its charts are drawn."""
    browser.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
    browser.go(Path("reports/report.html").absolute().as_uri())
    browser.shows("document.body && document.body.dataset.ready === 'yes'")


@pytest.mark.slow
def test_the_page_works_in_a_browser_and_asks_for_nothing(measured, browser):
    done = measured().stage("report")
    assert done.returncode == 0, done.stderr
    opened(browser)
    assert browser.value("document.querySelectorAll('.chart svg').length") == 3
    assert browser.value("[...document.images].every(image => image.complete && image.naturalWidth > 0)")

    rows = CELLS % BOARD
    assert browser.value(rows) == ["msf", "dit"]
    head = "#board-0 th:nth-child({}) button"
    browser.click(head.format(1))
    assert browser.value(rows) == ["dit", "msf"], "by name"
    browser.click(head.format(1))
    assert browser.value(rows) == ["msf", "dit"]
    browser.click(head.format(3))
    assert browser.value(f"{BOARD}.querySelector('[aria-sort]').textContent") == "KID-EffLite0"
    assert browser.value(rows) == ["msf", "dit"], "by number: 0.125 before 0.25"

    browser.type(".tools[data-for=board-0] input", "dit")
    browser.shows(f"{rows}.join() === 'dit'")
    assert browser.value("document.querySelector('.tools[data-for=board-0] .count').textContent") == "1 of 2"
    assert not browser.value(f"{BOARD}.classList.contains('all')")
    browser.click(".tools[data-for=board-0] .columns")
    assert browser.value(f"getComputedStyle({BOARD}.querySelector('th.more')).display") == "table-cell"

    paper = "getComputedStyle(document.body).backgroundColor"
    before = browser.value(paper)
    browser.click("#theme")
    assert browser.value(paper) != before
    browser.shows("document.querySelectorAll('.chart svg').length === 3")

    browser.click(".gallery button[data-method=dit]")
    assert browser.value("document.querySelector('dialog[open]').dataset.method") == "dit"
    assert browser.value("faults") == [], browser.value("faults")
    asked = {url for url in browser.asked.values() if not url.startswith(("data:", "blob:"))}
    assert asked == {Path("reports/report.html").absolute().as_uri()}


@pytest.mark.slow
def test_the_labels_of_the_front_do_not_overlap_and_a_phone_needs_no_sideways_scrolling(measured, browser):
    assert measured({"kid": 0.2475, "kid_se": 0.01}).stage("report").returncode == 0  # both points at one place
    for width in (1400, 390):
        opened(browser, width)
        boxes = browser.value(
            "[...document.querySelectorAll('#pareto-chart .mark-text.role-mark text')].filter(each => each.textContent"
            " && each.style.opacity !== '0' && each.getAttribute('opacity') !== '0').map(each => { const box ="
            " each.getBoundingClientRect(); return [each.textContent, box.left, box.top, box.right, box.bottom]; })"
        )
        own = [box for box in boxes if box[0] in METRICS]
        assert len(own) >= 1
        for k, (_, left, top, right, bottom) in enumerate(own):
            for _, other_left, other_top, other_right, other_bottom in own[k + 1 :]:
                assert right <= other_left or other_right <= left or bottom <= other_top or other_bottom <= top
        assert browser.value("document.documentElement.scrollWidth <= innerWidth")
    assert browser.value("faults") == [], browser.value("faults")


# --- the leaderboard's charts, cards and downloads


def test_what_stands_between_backticks_is_code_and_nothing_is_markup():
    assert page.with_code("a `b <c` <d> `e") == "a <code>b &lt;c</code> &lt;d&gt; `e"


def test_a_download_has_what_was_measured_and_how_it_was_beside():
    protocol = {"n": 4, "sfid": "mixed_6/conv, 7 channels", "clip_score": "a folder"}
    rows = [row("a", 0.1, 1) | {"sfid": 12.5, "clip_score": 31.0, "steps": [], "protocol": protocol}]
    (found,) = views.flat(rows).to_dicts()
    assert (found["sfid"], found["clip_score"], found["n"]) == (12.5, 31.0, 4)
    assert found["sfid_protocol"] == "mixed_6/conv, 7 channels" and found["clip_score_protocol"] == "a folder"


def test_a_floor_of_another_number_of_images_is_in_no_chart_of_what_depends_on_it():
    values = {"fd": 20.0, "recall": 0.5, "precision": 0.5, "label_accuracy": 0.9}
    floors = [row("real", 0.01, 0) | values | {"protocol": {"labels": "data", "n": n}} for n in (4, 3)]
    (board,) = views.pareto([Group({"metric": "EffLite0", "n": 4}, [], floors)])
    same, other = board["floors"]
    assert (same["fd"], same["recall"], same["kid"]) == (20.0, 0.5, 0.01)
    assert (other["fd"], other["recall"], other["precision"]) == (None, None, None)
    assert (other["kid"], other["label_accuracy"]) == (0.01, 0.9)


def test_the_figures_of_quality_are_those_of_each_protocol_and_of_what_copies_nothing():
    """Recall depends on the number of images, so that of two protocols is not compared; seconds are of both."""
    few = [row("a", 0.1, 1, recall=0.4, seconds_per_image=2.0)]
    few.append(row("b", 0.2, 1, recall=0.9, copies=True, seconds_per_image=3.0))
    many = [row("c", 0.3, 1, recall=0.5, seconds_per_image=1.0)]
    groups = [Group({"n": 4}, few, []), Group({"n": 8}, many, [])]
    found = {card.title: card.value for card in views.cards(groups, [], {})}
    assert found == {
        "lowest KID, N = 4": "a",
        "most diverse, N = 4": "a",
        "lowest KID, N = 8": "c",
        "most diverse, N = 8": "c",
        "fastest": "c",
    }


def test_no_method_is_named_first_where_all_are_equal():
    group = Group({"n": 4}, [row("a", 0.1, 1, recall=0.0), row("b", 0.2, 1, recall=0.0)], [])
    apart = Difference("a", "b", -0.1, 0.01, None, None)
    assert "most diverse" not in {card.title for card in views.cards([group], [apart], {})}


# --- pairs and fair views


def test_a_row_of_several_trainings_has_their_error_in_cards_fair_views_and_charts():
    cost = {"flops_per_image": 1e9, "kid_second": 0.5, "kid_second_se": 0.02, "kid_second_training_se": 0.06}
    best = row("a", 0.1, 1, kid_training_se=0.03, label_accuracy=None, **cost)
    group = Group({"n": 4}, [best, row("b", 0.2, 1, flops_per_image=1e9)], [])
    apart = [Difference("a", "b", -0.1, 0.1, None, None)]
    card, *_ = views.cards([group], apart, {})
    assert card.more == "0.1000 ± 0.0300; lead on b not shown"
    (table,) = fair.tables([group], apart)
    assert [line[2] for line in table.rows] == ["0.1000 +- 0.0300", "0.2000 +- 0.0100"], "b has one training"
    (point,) = views.points(best)
    assert (point["kid_se"], point["kid_second_se"], point["kid_test_se"]) == (0.03, 0.06, None)


def test_equal_accuracies_are_zero_without_a_sign_that_means_nothing():
    for line in views.pair_table([Difference("a", "b", 0.1, 0.01, 0.0, 0.0)]).rows:
        assert list(line[-2:]) == ["+0.0%", "+0.0 to +0.0 %"]


def row(name: str, kid: float, images: int, **more: object) -> dict:
    protocol = {"labels": "data", "n": 4}
    return {
        "method": name,
        "kid": kid,
        "kid_se": 0.01,
        "copies": False,
        "train_images": images,
        "protocol": protocol,
    } | more


def test_budgets_within_a_tenth_are_compared_and_no_others():
    rows = [row("a", 0.3, 1000), row("b", 0.2, 1100), row("c", 0.1, 1101), row("d", 0.1, 5000)]
    assert [[each["method"] for each in found] for found in fair.equal(rows, "train_images")] == [["a", "b"]]
    known = [Difference("b", "a", -0.1, 0.02, None, None)]
    (table,) = fair.tables([Group({}, rows, [])], known)
    assert [list(line) for line in table.rows] == [
        ["b", "1,100", "0.2000 +- 0.0100", "-", "-", "the best"],
        ["a", "1,000", "0.3000 +- 0.0100", "+0.1000", "+0.0600 to +0.1400", "worse"],
    ]


@pytest.mark.parametrize(
    "value, error, low, says",
    [
        (-0.1, 0.04, True, "better"),
        (-0.1, 0.05, True, "not shown"),
        (0.1, 0.04, True, "worse"),
        (0.1, 0.04, False, "better"),
        (None, None, False, "not shown"),
    ],
)
def test_a_difference_within_its_interval_shows_nothing(value, error, low, says):
    assert pairs.verdict(value, error, low) == says


def test_images_are_paired_by_their_seeds_and_compared_within_their_classes(tmp_path, monkeypatch):
    """Of differences 1, 3 and 10, 14: over all their mean is 7, within the classes they leave 2 + 8 at 2 freedoms."""
    import polars as pl

    monkeypatch.setattr(pairs, "PAIRED", tmp_path)
    seeds, labels = [0, 1, 2, 3], [0, 0, 1, 1]
    one = pl.DataFrame(
        {"seed": seeds, "label": labels, "kid": [2.0, 4.0, 12.0, 15.0], "correct": [True, True, True, False]}
    )
    two = pl.DataFrame({"seed": seeds, "label": labels, "kid": [1.0, 1.0, 2.0, 1.0], "correct": [True] * 4})
    one.write_parquet(tmp_path / "one.parquet")
    two.sample(fraction=1, shuffle=True, seed=1).write_parquet(tmp_path / "two.parquet")

    class Params:
        methods: dict = {}

    rows = [row("one", 0.5, 1, label_accuracy=0.75), row("two", 0.25, 1, label_accuracy=1.0)]
    for labels, variance in (("uniform", (2 + 8) / 2 / 4), ("data", (36 + 16 + 9 + 49) / 3 / 4)):
        (found,) = pairs.compare([Group({"labels": labels}, rows, [])], Params)
        assert (found.kid, found.accuracy) == (0.25, -0.25)
        assert found.kid_se == pytest.approx(variance**0.5)


def test_a_difference_by_seeds_covers_other_trainings_of_rows_that_have_several(tmp_path, monkeypatch):
    """The squares of the images sum to .5, with 3 freedoms and 4 images; trainings add .3 and .4, which are .5."""
    import polars as pl

    monkeypatch.setattr(pairs, "PAIRED", tmp_path)
    for name, kid in (("one", [0.5, 1.5, 1.0, 1.0]), ("two", [0.0] * 4)):
        images = {"seed": range(4), "label": [0] * 4, "kid": kid, "correct": [True] * 4}
        pl.DataFrame(images).write_parquet(tmp_path / f"{name}.parquet")

    class Params:
        methods: dict = {}

    of_images = (0.5 / 3 / 4) ** 0.5
    for over, error, says in (
        ((None, None), of_images, "worse"),
        ((0.3, None), (of_images**2 + 0.3**2) ** 0.5, "worse"),
        ((0.3, 0.4), (of_images**2 + 0.5**2) ** 0.5, "not shown"),
    ):
        rows = [
            row(name, kid, 1, label_accuracy=1.0, kid_training_se=each)
            for name, kid, each in zip(("one", "two"), (2.0, 1.0), over)
        ]
        (found,) = pairs.compare([Group({"labels": "uniform"}, rows, [])], Params)
        assert found.kid_se == pytest.approx(error) and pairs.verdict(found.kid, found.kid_se, True) == says
        assert found.accuracy_se == 0, "no spread of accuracy is known"


def test_floors_stand_under_their_class():
    import torch

    assert gallery.like(torch.tensor([3, 1, 1, 0]), torch.tensor([0, 1, 1, 3])) == [3, 1, 2, 0]


def test_the_spectrum_of_white_noise_is_flat_and_masked_from_a_half_on(tmp_path, monkeypatch):
    """Noise of power 1 in [-1, 1] is masked by as much noise: s = 1 - s."""
    from safetensors.numpy import save_file

    monkeypatch.setattr(gallery, "SAMPLES", tmp_path)
    (tmp_path / "noise").mkdir()
    pixels = np.clip(127.5 * (1 + np.random.default_rng(0).choice([-1, 1], (200, 1, 16, 16))), 0, 255).astype(np.uint8)
    save_file({"pixels": pixels, "label": np.zeros(200, np.int64)}, tmp_path / "noise" / "images.safetensors")
    found = gallery.spectra(["noise"], "noise")
    assert [each["ratio"] for each in found] == [1] * 8
    assert all(abs(each["power"] - 1) < 0.15 and abs(each["masked"] - 0.5) < 0.02 for each in found)
    assert gallery.masked_half(found, "noise") == pytest.approx(0.5, abs=0.02)
