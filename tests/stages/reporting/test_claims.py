"""The published claims: what decides them, and what the embedded experiment says about each."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, sealed
from ruamel.yaml import YAML
from safetensors.torch import save_file
from scipy import stats
from scipy.integrate import quad

from multiscale.methods.ssd import theory
from multiscale.methods.ssd.process import ScaleSpaceProcess
from stages.common.paths import CLAIMS
from stages.recipe import resolve
from stages.reporting import analyses, claims
from stages.schema.claims import Bounds, Claim, Losses, Masked

PROTOCOL = {"extractor": "efficientnet-lite0", "n": 40, "n_reference": 60}
SAMPLING = {"device": "an abacus", "rounds": 3}


def row(name: str, **values: object) -> dict:
    """A row of the leaderboard: KID 0.1 with a standard error of 0.003."""
    found = {"method": name, "kid": 0.1, "kid_se": 0.003, "kid_training_se": None, "trainings": 1, "copies": False}
    found |= {"parameters": 100, "network_calls": 8.0, "seconds_per_image": 0.5, "spread": 0.0}
    return found | {"train_seconds": 30.0, "train_seconds_training_se": None, "protocol": PROTOCOL} | values


def evidence(**changes: dict) -> claims.Evidence:
    """An experiment with the rows a and b."""
    rows = {name: row(name, **changes.get(name, {})) for name in "ab"}
    return claims.Evidence("toy", rows, [], SAMPLING)


def difference() -> Claim:
    """The KID of a is at most that of b."""
    quantity = {"kind": "difference", "column": "kid", "of": "a", "minus": "b"}
    given = {"paper": "2501.13349", "version": "v1", "says": "a is better", "published": 0.9}
    return Claim.model_validate(given | {"quantity": quantity, "holds": {"at_most": 0.0}})


def found(made: Claim, experiment: claims.Evidence | None = None) -> dict:
    return claims.evaluate({"x": made}, experiment or evidence())["x"]


@pytest.mark.parametrize(
    ("bounds", "value", "error", "holds"),
    [  # the interval is two standard errors to either side
        ({"at_most": 1.0}, 0.5, 0.25, "true"),  # 0 to 1: its end may touch the bound
        ({"at_most": 1.0}, 0.5, 0.26, "not shown"),
        ({"at_most": 1.0}, 1.5, 0.25, "not shown"),  # 1 to 2: touches
        ({"at_most": 1.0}, 1.5, 0.24, "false"),
        ({"below": 1.0}, 0.5, 0.25, "not shown"),
        ({"below": 1.0}, 0.5, 0.24, "true"),
        ({"below": 1.0}, 1.5, 0.25, "false"),
        ({"below": 1.0}, 1.0, 0.0, "false"),
        ({"at_most": 1.0}, 1.0, 0.0, "true"),
        ({"at_least": 1.0}, 1.5, 0.25, "true"),
        ({"at_least": 1.0}, 1.5, 0.26, "not shown"),
        ({"at_least": 1.0}, 0.5, 0.24, "false"),
        ({"at_least": 1.0}, 0.5, 0.25, "not shown"),
        ({"above": 1.0}, 1.5, 0.25, "not shown"),
        ({"above": 1.0}, 1.5, 0.24, "true"),
        ({"above": 1.0}, 0.5, 0.25, "false"),
        ({"at_least": 1.0, "at_most": 2.0}, 1.5, 0.25, "true"),
        ({"at_least": 1.0, "at_most": 2.0}, 1.5, 0.26, "not shown"),
        ({"at_least": 1.0, "at_most": 2.0}, 2.5, 0.24, "false"),
        ({"at_most": 1.0}, 0.5, None, "not shown"),
        ({"at_most": 1.0}, 9.5, None, "not shown"),
        ({"at_most": 1.0}, float("nan"), 0.25, "not shown"),
        ({"above": 1.0}, 1.5, float("nan"), "not shown"),
    ],
)
def test_a_claim_is_decided_by_the_whole_interval(bounds, value, error, holds):
    assert claims.verdict(Bounds(**bounds), claims.around(value, error)[1]) == holds


def test_a_difference_has_the_error_of_both_rows():
    """0.02 with an error of hypot(0.003, 0.004) = 0.005: b's KID is above a's by four of them."""
    judged = found(difference(), evidence(a={"kid": 0.08, "kid_se": 0.003}, b={"kid_se": 0.004}))
    assert judged["measured"] == pytest.approx(-0.02) and judged["interval"] == pytest.approx([-0.03, -0.01])
    assert (judged["holds"], judged["published"], judged["asked"]) == ("true", 0.9, "at most 0")
    assert found(difference(), evidence(a={"kid": 0.12}, b={"kid_se": 0.004}))["holds"] == "false", "the direction"
    assert found(difference(), evidence(a={"kid": 0.092}, b={"kid_se": 0.004}))["holds"] == "not shown"


def ratio(column: str, bound: float, **others: object) -> Claim:
    quantity = {"kind": "ratio", "column": column, "of": "a", "over": "b"}
    given = {"paper": "2501.13349", "version": "v1", "says": "a is less", "published": [0.8, 0.9]}
    return Claim.model_validate(given | {"quantity": quantity, "holds": {"at_most": bound}} | others)


def test_a_ratio_has_the_relative_errors_of_both_rows():
    """0.06 / 0.1 = 0.6; at each end r the difference 0.06 - 0.1 r is two of its standard errors from zero."""
    judged = found(ratio("kid", 0.7), evidence(a={"kid": 0.06, "kid_se": 0.003}, b={"kid_se": 0.012}))
    assert judged["measured"] == pytest.approx(0.6)
    for end in judged["interval"]:
        assert abs(0.06 - 0.1 * end) == pytest.approx(2 * (0.003**2 + (0.012 * end) ** 2) ** 0.5)
    assert judged["interval"] == pytest.approx([0.4718, 0.8015], abs=1e-4) and judged["holds"] == "not shown"
    assert judged["published"] == [0.8, 0.9]


@pytest.mark.parametrize("error", [0.1, 0.2, 0.4])
def test_a_ratio_at_its_bound_is_shown_to_be_below_in_one_of_forty_experiments(error):
    """Of values 0.7 +- 0.01 and 1 +- error, a Gaussian lies two standard errors below in 2.3 % of all cases."""
    draws = np.random.default_rng(0).normal(size=(20000, 2)) * [0.01, error] + [0.7, 1.0]
    bounds, shown = Bounds(at_most=0.7), []
    for of, over in draws[draws[:, 1] > 2 * error]:
        shown.append(claims.verdict(bounds, claims.ratio((of, 0.01), (over, error))[1]) == "true")
    assert sum(shown) / len(draws) == pytest.approx(0.0228, abs=0.004)


def test_several_trainings_tell_the_error_by_their_spread():
    """An error of 0.01 over trainings for a; b has its 0.003 over images."""
    judged = found(difference(), evidence(a={"kid_training_se": 0.01, "trainings": 9}))
    assert judged["interval"][1] == pytest.approx(2 * (0.01**2 + 0.003**2) ** 0.5)
    assert judged["protocol"].endswith("trainings of each: 9 and 1; interval over trainings of a alone")
    both = {name: {"kid_training_se": 0.01, "trainings": 9} for name in "ab"}
    assert found(difference(), evidence(**both))["protocol"].endswith("trainings of each: 9; interval over trainings")


def test_seconds_have_the_spread_of_a_round_and_those_of_training_that_of_trainings():
    """An interquartile range of 1.349 % is a standard deviation of 1 % of a Gaussian; t of two degrees is 4.3027."""
    changes = {"seconds_per_image": 0.25, "spread": 0.01349}
    judged = found(ratio("seconds_per_image", 0.7), evidence(a=changes))
    reach = 0.5 * 0.01 * 4.3027
    assert judged["measured"] == 0.5 and judged["interval"] == pytest.approx([0.5 - reach, 0.5 + reach], rel=1e-4)
    assert judged["holds"] == "true" and "an abacus" in judged["protocol"]
    rows = {name: row(name, **values) for name, values in (("a", changes), ("b", {}))}
    alone = found(ratio("seconds_per_image", 0.7), claims.Evidence("toy", rows, [], SAMPLING | {"rounds": 1}))
    assert (alone["interval"], alone["holds"]) == (None, "not shown"), "one round tells no spread"
    once = found(ratio("train_seconds", 2.0))
    assert (once["measured"], once["interval"], once["holds"]) == (1.0, None, "not shown")
    often = {name: {"train_seconds_training_se": 1.5, "trainings": 4} for name in "ab"}
    assert found(ratio("train_seconds", 2.0), evidence(**often))["holds"] == "true"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"a": {"kid": None}}, "kid of a was not measured"),
        ({"b": {"copies": True}}, "b copies training images"),
        ({"b": {"protocol": PROTOCOL | {"n": 41}}}, "a and b were measured by different protocols"),
        ({"b": {"kid_se": 0.05}}, "the second is not distinguishable from zero"),
    ],
)
def test_what_cannot_be_compared_is_not_measured_and_says_why(changes, why):
    judged = found(ratio("kid", 1.0), evidence(**changes))
    assert (judged["holds"], judged["measured"], judged["interval"]) == ("not measured", None, None)
    assert why in judged["why"]


def test_a_claim_without_its_rows_names_them_and_the_recipe_that_has_them():
    lacking = claims.Evidence("toy", {"b": row("b")}, [])
    assert found(ratio("kid", 1.0, recipe="more", note="A note"), lacking)["why"] == (
        "needs the row a; recipe more has what it needs. A note"
    )
    assert "needs the rows a and b" in found(ratio("kid", 1.0), claims.Evidence("toy", {}, []))["why"]
    first = {"kind": "ratio", "column": "kid", "of": ["missing", "a"], "over": "b"}
    assert found(ratio("kid", 2.0, quantity=first))["measured"] == 1.0, "the first that is there"


def test_rows_that_do_not_test_a_claim_leave_it_not_measured():
    given = [{"quantity": {"kind": "ratio", "column": "parameters", "of": "a", "over": "b"}, "holds": {"at_most": 1.1}}]
    made = ratio("kid", 2.0, given=given)
    assert found(made)["holds"] == "true"
    judged = found(made, evidence(a={"parameters": 120}))
    assert judged["holds"] == "not measured" and "a / b is 1.2, asked for at most 1.1" in judged["why"]


# --- the file


def test_each_row_that_a_claim_needs_is_in_the_recipe_that_it_names(monkeypatch):
    monkeypatch.chdir(ROOT)
    for name, made in claims.load().items():
        if made.recipe:
            recipe = resolve(made.recipe)
            for quantity in (made.quantity, *(condition.quantity for condition in made.given)):
                fields = quantity.model_dump()
                needed = [fields[key] for key in ("of", "over", "minus", "row") if key in fields]
                known = recipe["parts"] if quantity.kind == "losses" else recipe["methods"]
                rows = [[each] if isinstance(each, str) else each for each in needed]
                assert all(known.keys() & {*names} for names in rows), (name, made.recipe, needed)


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        (
            "quantity",
            {"kind": "ratio", "column": "kidd", "of": "a", "over": "b"},
            "wmgm-quality.quantity.column: 'kidd' is",
        ),
        (
            "quantity",
            {"kind": "eval", "text": "a/b"},
            "wmgm-quality.quantity.kind: 'eval' is not allowed; allowed: one of",
        ),
        ("holds", {}, "wmgm-quality.holds.bounds: {} is not allowed; allowed: one or more of at_most"),
        ("holds", {"at_msot": 1.0}, "at_msot' is no key of this section (did you mean at_most?)"),
        ("published", [1.0, 2.0, 3.0], "wmgm-quality.published"),
    ],
)
def test_a_claim_that_is_not_allowed_is_one_line(project, key, value, line):
    given = YAML(typ="safe").load(CLAIMS)
    given["claims"]["wmgm-quality"][key] = value
    CLAIMS.write_text(json.dumps(given))
    done = project.stage("report")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"error: {CLAIMS}: claims.") and line in done.stderr and "allowed" in done.stderr


def test_the_embedded_experiment_decides_what_does_not_depend_on_the_machine(monkeypatch):
    """Exact figures and differences of several standard errors of the rows that git has."""
    monkeypatch.chdir(ROOT)
    rows = json.loads(Path("reports/leaderboard.json").read_text())
    found = claims.evaluate(claims.load(), claims.Evidence("embedded", rows, []))
    expected = {"wmgm-quality": "false", "msf-quality": "false", "wmgm-parameters": "not measured"}
    assert {name: found[name]["holds"] for name in expected} == expected
    seconds = [name for name, made in claims.load().items() if "seconds" in getattr(made.quantity, "column", "")]
    assert seconds and all(found[name]["holds"] == "not measured" for name in seconds)


# --- analyses


def test_the_information_of_a_state_is_the_integral_of_the_paper():
    for snr in (0.01, 0.5, 4.0):
        integral, _ = quad(lambda x: stats.norm.cdf(-(snr**0.5) * x), 0, 1)  # noqa: B023
        assert theory.information(snr) == pytest.approx(1 - 2 * integral, abs=1e-12)


def test_published_processes_shrink_where_the_image_has_lost_more_than_the_pixels():
    """Of spec values: t = 438, 750 and 937 keep .159, .0229 and .0047 of the pixels, of 1/4, 1/16 and 1/64."""
    four = ScaleSpaceProcess(levels=4).build(64)
    assert theory.excess_information(four) == pytest.approx(max(0.159 * 4, 0.0229 * 16, 0.0047 * 64), rel=2e-3)
    assert theory.excess_information(ScaleSpaceProcess(levels=1).build(64)) is None


def test_one_level_is_ddpm_and_more_are_not():
    assert theory.distance_to_ddpm(ScaleSpaceProcess(levels=1).build(16)) < 1e-11
    assert theory.distance_to_ddpm(ScaleSpaceProcess(levels=2).build(16)) is None


def test_the_last_losses_are_compared_with_their_scatter(tmp_path, monkeypatch):
    """2, 3, 4 over 6, 6, 6: one half, with a relative error of 1 / 3 / sqrt(3) and t of two degrees, 4.3027."""
    monkeypatch.chdir(tmp_path)
    for part, losses in (("m-1", [9, 2, 3, 4]), ("m-0", [6, 6, 6]), ("m-2", [1, 2])):
        folder = Path("models/m", part)
        folder.mkdir(parents=True)
        (folder / "history.jsonl").write_text("".join(json.dumps({"loss": float(loss)}) + "\n" for loss in losses))
    monkeypatch.setattr(analyses.intact, "check_folder", lambda *_: None)
    quantity = Losses(kind="losses", of="m-1", over="m-0")
    value, error = analyses.losses(quantity, ["m"])
    assert (value, error) == (0.5, pytest.approx(0.5 / 3 / 3**0.5 * 4.3027 / 2, rel=1e-4))
    assert analyses.losses(quantity.model_copy(update={"of": "m-2"}), ["m"])[1] is None
    with pytest.raises(analyses.Lacking, match="needs the part m-3"):
        analyses.losses(quantity.model_copy(update={"of": "m-3"}), ["m"])


@pytest.fixture
def pyramid(tmp_path, monkeypatch):
    """Writes latents of 8x8 whose rows are waves of so many cycles an image, and measures what noise of 0.8 masks."""
    monkeypatch.chdir(tmp_path)
    folder = Path("data/decomposed/pyramid")
    folder.mkdir(parents=True)
    (folder / "statistics.json").write_text(json.dumps({"grids": {"32": 8, "16": 4}}))

    def measure(*cycles: int, amplitude: float = 1000.0) -> float:
        place = 2 * torch.pi * torch.arange(8) / 8
        rows = torch.stack([torch.cos(k * place).expand(4, 8, 8) for k in cycles])
        save_file({"z32": amplitude * rows.contiguous()}, folder / "targets.safetensors")
        sealed(folder)
        return analyses.masked(Masked(kind="masked", dataset="pyramid", sigma=0.8))[0]

    return measure


def test_the_resolution_that_noise_leaves_enough_holds_the_highest_frequency_that_can_be_seen(pyramid):
    """One cycle is seen, two are masked: 4 of 8, whose highest frequency is 2 of 8."""
    assert pyramid(1, 1, 1) == 0.5 and pyramid(1, 1, 3) == 1.0


def test_noise_that_masks_everything_shows_nothing(pyramid):
    with pytest.raises(analyses.Unmeasured, match="masks every frequency of pyramid"):
        pyramid(1, 2, 3, amplitude=0.1)


def test_a_spectrum_is_of_all_classes_of_a_sorted_set(pyramid, monkeypatch):
    monkeypatch.setattr(analyses, "IMAGES", 2)
    assert pyramid(1, 1, 3, 3) == 1.0, "rows 0 and 2"
