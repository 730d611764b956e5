"""The report: its tables, its page, and what it says of a timing or a protocol."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shutil
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT, flipped, refused, sealed
from PIL import Image
from results import (
    COST,
    FIELDS,
    FLOORS,
    METRICS,
    OTHER,
    PROTOCOL,
    REST,
    SAMPLING,
    SECONDS,
    TIMED,
    Page,
    charts,
    made,
    put_json,
    put_measured,
    section,
    tables_of,
    whole,
)
from ruamel.yaml import YAML

from multiscale import adversarial
from multiscale.core.storage import Table
from multiscale.methods.wmgm import bands
from stages import summary
from stages.common import timings
from stages.common.paths import COSTS, SAMPLES
from stages.reporting import leaderboard, page, rows
from stages.reporting.rows import grouped


def test_the_leaderboard_holds_what_was_measured(measured):
    made(measured())
    rows = json.loads(Path("reports/leaderboard.json").read_text())
    assert list(rows) == ["msf", "dit", "real", "autoencoder"], "the best first, then the floors"
    for method in METRICS:
        row = rows[method]
        assert set(FIELDS.split()) <= set(row) and (row["method"], row["recipe"]) == (method, "tiny")
        assert row.items() >= {**METRICS[method], **REST, **COST}.items()
        assert (row["kind"], row["protocol"], row["trainings"]) == ("method", PROTOCOL, 1)
    for floor, own in FLOORS.items():
        assert rows[floor].items() >= own.items() and rows[floor]["kind"] == "floor"
    assert rows["dit"]["train_images"] == 256 and rows["msf"]["train_images"] == 512
    frame = pl.read_parquet("reports/leaderboard.parquet")
    assert frame["method"].to_list() == list(rows)
    assert {row["method"]: row["kid"] for row in frame.to_dicts()} == {name: row["kid"] for name, row in rows.items()}


def test_rows_of_one_protocol_are_one_table_the_best_first(measured):
    tables = made(measured()).tables
    assert len(tables) == 1 and [row[0] for row in tables[0]] == ["method", "msf", "dit", "real", "autoencoder"]
    assert tables_of(Path("reports/leaderboard.md").read_text()) == [["msf", "dit", "*real*", "*autoencoder*"]]


@pytest.mark.parametrize("field", PROTOCOL)
def test_rows_of_different_protocols_are_never_in_one_group(field):
    row = {"kind": "method", "kid": 0.5, "copies": False}
    dit = row | {"method": "dit", "protocol": PROTOCOL}
    msf = row | {"method": "msf", "protocol": PROTOCOL | {field: OTHER[field]}}
    real = {"method": "real", "kind": "floor", "protocol": PROTOCOL | {"seeds": None, "n": 30, "labels": None}}
    found = {group.methods[0]["method"]: group for group in grouped([dit, msf, real])}
    assert all(len(group.methods) == 1 for group in found.values()) and len(found) == 2
    shared = field in ("n", "seeds", "labels")  # which are of the images, not of the measure
    assert (found["dit"].floors, found["msf"].floors) == ([real], [real] if shared else [])
    assert found["msf"].protocol[field] == OTHER[field]


def test_rows_of_different_protocols_are_never_in_one_table(measured):
    tables = [[row[0] for row in table[1:]] for table in made(measured(reference=OTHER["reference"])).tables]
    assert sorted(tables) == [["dit", *FLOORS], ["msf"]]
    found = tables_of(Path("reports/leaderboard.md").read_text())
    assert sorted([name.strip("*") for name in table] for table in found) == sorted(tables)


def test_a_distance_bears_the_name_of_its_extractor_and_is_not_called_fid(measured):
    tables = made(measured(metric="Inception")).tables
    for name in ("KID", "FD", "IS", "precision", "recall"):
        heads = sorted(next(head for head in table[0] if head.startswith(name)).strip("*") for table in tables)
        assert heads == [f"{name}-EffLite0", f"{name}-Inception"]
    results = "".join(map(section, ("header", "leaderboard", "pareto", "fair", "protocol")))
    assert "FID" not in re.sub('base64,[^"]+', "", results) + Path("reports/leaderboard.md").read_text()


def test_each_table_says_its_protocol_beside(measured):
    made(measured(n=41, seeds="0..40"))
    for text in (Path("reports/leaderboard.md").read_text(), Path("reports/report.html").read_text()):
        for fragment in ("efficientnet-lite0", "0..39", "0..40", "all pairs", "0123456789abcdef", "bicubic"):
            assert fragment in text


def test_the_page_holds_its_pictures_and_points_nowhere(measured):
    made(measured())
    found = whole()
    assert "iframe" not in found.tags and "http" not in re.sub(
        '<script.*?</script>|<!--.*?-->|base64,[^"]+', "", Path("reports/report.html").read_text(), flags=re.DOTALL
    )
    shown = [(picture["alt"], picture["src"]) for picture in found.pictures]
    assert all(address.startswith("data:image/webp;base64,") for _, address in shown)
    sheets = {f"{method}: strip" for method in METRICS}
    sheets |= {f"{name}: {kind}" for name in (*METRICS, *FLOORS) for kind in ("grid", "neighbours")}
    assert {alt for alt, _ in shown} == sheets | {f"{name}: samples" for name in (*METRICS, *FLOORS)}
    for alt, address in shown:
        with Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as image:
            assert image.size == ((9, 7) if alt in sheets else (10 * 33 - 1, 32)), alt


NASTY = """<script>alert("x")</script><b>&amp;'"""


def test_a_name_on_the_page_is_text_and_never_markup(measured):
    project = measured()
    project.change({"recipe": NASTY})
    table = pq.read_table("data/images.parquet")
    names = json.dumps([NASTY] * 10)
    pq.write_table(table.replace_schema_metadata({"classes": names}), "data/images.parquet")
    sealed("data/images.parquet")
    made(project)
    heads = [html.escape(NASTY, quote=True).replace("&quot;", "&#34;").replace("&#x27;", "&#39;")]
    for name in ("header", "samples"):
        assert {"script", "b"}.isdisjoint(Page(section(name)).tags) and heads[0] in section(name)
    rest = charts() | {"boards": []}
    assert rest["curves"], "the data are still JSON"


def test_data_of_the_charts_end_no_script():
    found = page.Page(**dict.fromkeys(page.Page.__dataclass_fields__, ()) | {"charts": {"part": NASTY}}).data
    assert "<" not in found and json.loads(found) == {"part": NASTY}


def test_the_page_names_the_classes_where_the_data_does(measured):
    project = measured()
    made(project)
    assert "classes:" not in Path("reports/report.html").read_text()
    table = pq.read_table("data/images.parquet")
    pq.write_table(
        table.replace_schema_metadata({"classes": json.dumps(["boot", "<b>", *"cdefghij"])}), "data/images.parquet"
    )
    sealed("data/images.parquet")
    made(project)
    assert "10 classes: boot, &lt;b&gt;, c, d, e, f, g, h, i, j</p>" in Path("reports/report.html").read_text()


def test_the_curves_of_all_parts_are_in_one_file(measured):
    made(measured())
    rows = pl.read_csv("reports/training.csv")
    assert rows.columns == ["part", "images", "loss", "lr", "grad_norm"]
    assert rows.filter(pl.col("part") == "msf-1")["loss"].to_list() == [1.0, 0.5]
    assert rows["part"].unique().sort().to_list() == ["dit", "msf-0", "msf-1"]
    held_out = pl.read_csv("reports/validation.csv")
    assert held_out.columns == ["part", "images", "validation_loss"]
    assert held_out.filter(pl.col("part") == "msf-1").rows() == [("msf-1", 64, 4.0), ("msf-1", 256, 3.0)]


def test_the_galleries_hold_the_pictures_of_each_method_and_no_other(measured):
    project = measured()
    Path("reports/galleries").mkdir(parents=True)
    Path("reports/galleries/ssd-grid.png").write_bytes(b"left over")
    made(project)
    names = {path.name for path in Path("reports/galleries").iterdir()}
    wanted = {f"{name}-{kind}.png" for name in (*METRICS, *FLOORS) for kind in ("grid", "neighbours")}
    assert names == wanted | {f"{name}-strip.png" for name in METRICS}


def test_the_report_shows_the_bands_their_theory_and_a_collapsed_generator(measured):
    project = measured()
    images = torch.randint(0, 256, (8, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    table = Table({name: band.numpy() for name, band in bands.decompose_images(images, "haar", 1).items()})
    put_json("data/decomposed/wavelet/statistics.json", bands.statistics(table, "haar", 1))
    still = adversarial.diversity(lambda k: torch.ones(4, 3, 2, 2), torch.randn(4, 3, 2, 2))
    put_json("models/msf/msf-1/examined.json", {"diversity": [{"level": 1, **still}]})
    sealed("data/decomposed/wavelet"), sealed("models/msf/msf-1")
    done = project.stage("report")
    assert done.returncode == 0, done.stderr
    assert "mode collapse: msf-1 at level 1 varies 0 times as much as the data" in done.stdout
    assert "mode collapse: msf-1 at level 1" in Path("reports/report.html").read_text()
    statistics, diversity = (table for table in whole().tables if table[0][0] in ("band", "part"))  # each once
    assert [row[0] for row in statistics] == ["band", "ll", "pixels", "details-1"]
    assert diversity[1][:3] == ["msf-1", "1", "0"]
    for name in ("conditioning", "euler-steps"):
        assert Image.open(f"reports/galleries/wavelet-{name}.png").width > 400


def test_a_set_without_classes_has_no_label_accuracy(measured):
    tables = made(measured({"label_accuracy": None})).tables
    assert list(columns(tables[0], "label accuracy").values())[:2] == ["-", "50.0%"]


def test_the_report_of_the_same_numbers_is_the_same_to_the_last_bit(measured):
    project = measured()
    made(project)
    before = project.files()
    made(project)
    assert project.files() == before


@pytest.mark.parametrize(
    "path",
    [
        "samples/msf/grid.png",
        "reports/costs.json",
        "models/msf/msf-0/history.jsonl",
        "reports/measurements/real.json",
        "reports/neighbours/msf.png",
        "reports/paired/msf.parquet",
        "samples/msf/images.safetensors",
    ],
)
def test_a_report_without_one_of_its_inputs_is_one_line_that_names_it(measured, path):
    project = measured()
    Path(path).unlink()
    refused(project.stage("report"), path)
    assert not Path("reports/report.html").exists()


def test_a_report_of_damaged_images_is_refused_before_anything_is_written(measured):
    project = measured()
    for place in ("samples/dit/images.safetensors", "samples/real/images.safetensors", "reports/neighbours/real.png"):
        path = Path(place)
        with flipped(path, path.stat().st_size // 2, 3):
            before = project.files()
            refused(project.stage("report"), f"error: {place}: damaged", "makes it")
            assert project.files() == before


def test_an_empty_folder_of_samples_is_one_line(measured):
    project = measured()
    shutil.rmtree("samples/msf")
    Path("samples/msf").mkdir()
    refused(project.stage("report"), "samples/msf: holds no checksums.json; sample@msf")


def test_rows_of_several_protocols_are_told_in_a_line_and_never_paired(measured):
    done = measured(reference=OTHER["reference"]).stage("report")
    line = "Rows of 2 protocols are kept apart and never compared (reference: "
    assert sum(each.startswith(line) for each in done.stdout.splitlines()) == 1 and line in section("header")
    assert pl.read_csv("reports/pairs.csv").height == 0


@pytest.mark.parametrize(
    "name, value, shown",
    [
        ("recall", 0.12345, "0.1235"),
        ("fd", 123.456, "123.5"),
        ("label_accuracy", 0.123, "12.3%"),
        ("flops_per_image", 2.5e9, "2.5"),
        ("parameters", 1234567, "1.23 M"),
        ("peak_memory_bytes", 3 * 2**20, "3 MiB"),
        ("train_seconds", 30.75, "31"),
        ("spread", 0.0625, "6.2%"),
        ("train_images", 48000, "48,000"),
        ("seconds_per_image", 0.012345, "0.0123"),
        ("processor_seconds_per_image", 0.012345, "0.0123"),
        ("kid", None, "-"),
        ("method", "msf", "msf"),
        ("memorised", 0.0125, "1.2%"),
    ],
)
def test_a_value_is_written_as_people_read_it(name, value, shown):
    assert leaderboard.cell(name, {name: value}) == shown


# --- what the leaderboard says


def columns(table: list[list[str]], start: str) -> dict[str, str]:
    """The cells of the first column whose heading has this prefix, by row."""
    column = next(k for k, head in enumerate(table[0]) if head.startswith(start))
    return {row[0]: row[column] for row in table[1:]}


def told() -> str:
    """The notes below the single table, the same in Markdown and on the page."""
    (_, text, *_) = Path("reports/report.md").read_text().split("\n\n")
    notes = re.findall("<li>(.*?)</li>", Path("reports/report.html").read_text())
    assert html.unescape(re.sub("</?code>", "`", " ".join(notes))) == text.strip()
    return text


def test_a_method_that_copies_comes_last_whatever_its_kid(measured):
    (table,) = made(measured({"kid": 0.001, "copies": True, "memorised": 0.5})).tables
    assert [row[0] for row in table[1:3]] == ["dit", "msf (copies)"]
    assert columns(table, "memorised")["msf (copies)"] == "50.0%"
    assert "Methods that copy training images, ranked last: msf." in told() and "Best KID" not in told()
    assert list(json.loads(Path("reports/leaderboard.json").read_text()))[:2] == ["dit", "msf"]


def test_floors_are_set_apart_and_have_no_costs(measured):
    (table,) = made(measured()).tables
    assert re.search('<tr class="floor"><td[^>]*>real</td>', section("leaderboard"))
    assert columns(table, "KID-EffLite0")["real"] == "0.0078 ± 0.0010"
    assert columns(table, "s/image")["real"] == columns(table, "KID-EffLite0, test split")["real"] == "-"
    assert columns(table, "FD-EffLite0")["autoencoder"] == "60"
    assert columns(table, "label accuracy (the classifier on real images: 93.8%)")["real"] == "93.8%"


def test_a_floor_of_another_number_of_images_leaves_out_what_depends_on_it(measured):
    project = measured()
    put_measured("real", {**REST, **FLOORS["real"]}, {**PROTOCOL, "seeds": None, "n": 30})
    (table,) = made(project).tables
    for head in ("FD-", "IS-", "precision-", "recall-"):
        assert (columns(table, head)["real"], columns(table, head)["autoencoder"] != "-") == ("-", True)
    assert columns(table, "KID-EffLite0")["real"] == "0.0078 ± 0.0010"
    assert "real: held-out images (N = 30: metrics that depend on N are left out)" in told()


def test_without_floors_the_classifiers_own_accuracy_is_that_of_its_training(measured):
    project = measured()
    project.change({"evaluate.floors": []})
    (table,) = made(project).tables
    assert set(columns(table, "label accuracy (the classifier on real images: 96.9%)")) == {"msf", "dit"}
    assert "Floors are not ranked" not in told()


# --- the leaderboard in the terminal


def test_the_leaderboard_in_the_terminal_has_ten_aligned_columns(measured):
    project = measured()
    put_measured("real", {**REST, **FLOORS["real"]}, {**PROTOCOL, "seeds": None, "n": 30})  # recall depends on n
    done = project.stage("summary")
    assert done.stdout.splitlines()[:7] == [
        "method       works on      KID-EffLite0  recall  accuracy  s/image  calls  GFLOP  params  images",
        "------------------------------------------------------------------------------------------------",
        "msf          latents   0.1250 +- 0.0200  0.2500     75.0%      0.5      8    2.5  1.23 M     512",
        "dit          latents   0.2500 +- 0.0100  0.2500     50.0%      0.5      8    2.5  1.23 M     256",
        "------------------------------------------------------------------------------------------------",
        "real         pixels    0.0078 +- 0.0010       -     93.8%        -      -      -       -       -",
        "autoencoder  latents   0.0625 +- 0.0020  0.2500     87.5%        -      -      -       -       -",
    ]
    assert done.stdout == project.stage("report").stdout[: len(done.stdout)], "the stage prints the same"


def test_one_method_is_shown_before_the_others_are_measured(measured):
    project = measured()
    for path in ("reports/costs.json", "reports/measurements/dit.json", "reports/measurements/real.json"):
        Path(path).unlink()
    shown = project.stage("summary", "msf").stdout.partition("\n\n")[0].splitlines()
    assert [line.split()[0] for line in shown[2:]] == ["msf"] and "s/image" not in shown[0]
    for arguments, fault in (((), "dit.json: missing"), (("sgm",), "'sgm' is not allowed")):
        done = project.stage("summary", *arguments)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1) and fault in done.stderr


def test_the_leaderboard_of_the_embedded_recipe_fits_a_terminal():
    rows = json.loads((ROOT / "reports" / "leaderboard.json").read_text()).values()
    timed = [row | ({"seconds_per_image": 0.00555} if row["kind"] == "method" else {}) for row in rows]
    text = summary.text(grouped(timed))
    assert max(map(len, text.splitlines())) <= 100
    assert len(text.partition("\n")[0].split()) == 11  # the words of ten headings


# --- what was measured on this machine


def test_seconds_and_memory_are_in_the_report_and_in_no_table_that_git_keeps(measured):
    (table,) = made(measured()).tables
    shown = {"s/image": "0.5", "processor s/image": "0.25", "spread": "12.5%", "s/image, batch 1": "1.5"}
    shown |= {"busy rounds": "1", "training s": "31", "peak memory": "3 MiB"}
    for head, cell in shown.items():
        assert table[1][table[0].index(head)] == cell and head not in Path("reports/leaderboard.md").read_text()
    assert columns(table, "training s")["dit"] == "30"
    for fragment in ("an abacus", "batches of 20", "3 rounds", "4.8 GFLOP", "(0.062 s)", "load average 1.5"):
        assert fragment in told()


@pytest.mark.parametrize("missing", [False, True])
def test_what_dvc_keeps_of_the_report_is_the_same_whatever_was_measured(measured, missing):
    """Byte for byte: a second run on this machine, or a run on another one, leaves dvc.lock and git's files alone."""
    project = measured()
    made(project)
    kept, before = outputs("report"), project.files()
    if missing:
        shutil.rmtree("reports/timing")
    else:
        slower = {name: {key: 3 * value for key, value in TIMED.items()} for name in METRICS}
        timings.write("sampling", COSTS, SAMPLING | {"methods": slower, "device": "a slide rule", "load_average": 9.5})
        timings.write("dit", Path("models/dit/dit/history.jsonl"), {"train_seconds": 1.0})
        timings.write("sample-dit", SAMPLES / "dit/costs.json", {"peak_memory_bytes": 7 * 2**20})
    (table,) = made(project).tables
    assert columns(table, "s/image")["msf"] == ("-" if missing else "1.5"), "the page follows"
    assert columns(table, "training s")["dit"] == ("-" if missing else "1")
    changed = {path for path in {*before, *project.files()} if before.get(path) != project.files().get(path)}
    assert changed >= {"reports/report.html", "reports/report.md", "reports/quality-time.png"}
    assert len(kept) > 5 and not changed & set(kept), "an output of DVC holds what was measured"
    assert all(
        path.startswith("reports/timing/") or not path.endswith((".json", ".csv", ".parquet")) for path in changed
    )


def outputs(stage: str) -> list[str]:
    """The files that DVC keeps of a stage."""
    paths = [
        next(iter(out)) if isinstance(out, dict) else out
        for kind in ("outs", "metrics")
        for out in YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"][stage].get(kind, [])
    ]
    whole = [file for path in map(Path, paths) for file in ([path] if path.is_file() else path.rglob("*"))]
    return [file.as_posix() for file in whole]


def test_without_timings_the_report_says_how_to_make_them(measured):
    project = measured()
    made(project)
    shutil.rmtree("reports/timing")
    (table,) = made(project).tables
    for head in ("s/image", "spread", "busy rounds", "training s", "peak memory"):
        assert set(columns(table, head).values()) == {"-"}
    assert "`dvc repro -f -s timing report` measures them" in told()
    assert not Path("reports/quality-time.png").exists(), "a plot of before"
    assert {point["seconds_per_image"] for point in charts()["boards"][0]["points"]} == {None}


@pytest.mark.parametrize(
    "result, hidden",
    [
        ("reports/costs.json", ["s/image", "s/image, batch 1", "spread", "busy rounds"]),
        ("models/dit/dit/history.jsonl", ["training s"]),
        ("samples/dit/costs.json", ["peak memory"]),
    ],
)
def test_what_was_measured_of_another_result_is_not_shown(measured, result, hidden):
    """As after `git checkout` and `dvc checkout`, which leave the files of the experiment before."""
    project = measured()
    Path(result).write_text(Path(result).read_text() + "\n")
    sealed("models/dit/dit"), sealed("samples/dit")
    (table,) = made(project).tables
    row = dict(zip(table[0], next(row for row in table if row[0] == "dit")))
    dashes = {head for head in ("s/image", "s/image, batch 1", "spread", "busy rounds", "training s", "peak memory")}
    assert {head for head in dashes if row[head] == "-"} == set(hidden)


def test_a_method_works_on_latents_if_an_autoencoder_lies_beside_its_parts(measured):
    project = measured()
    Path("models/dit/dit/autoencoder").rmdir()
    Path("models/msf/msf-0/autoencoder").rmdir()  # one part that needs it is enough
    (table,) = made(project).tables
    found = {"msf": "latents", "dit": "pixels", "real": "pixels", "autoencoder": "latents"}
    assert columns(table, "works on") == found


def test_several_trainings_are_one_row_with_their_mean_and_spread(measured):
    project = measured()
    given, changes = project.read(), {}
    for k, kid in ((1, 0.25), (2, 0.375)):  # beside 0.125: mean 0.25, standard deviation 0.125
        names = {f"msf-{j}": f"msf-{j}-seed-{k}" for j in (0, 1)}
        changes |= {f"parts.{new}": given["parts"][old] | {"method": f"msf-seed-{k}"} for old, new in names.items()}
        changes[f"methods.msf-seed-{k}"] = given["methods"]["msf"] | {"repeat_of": "msf"}
        put_measured(f"msf-seed-{k}", {**REST, **METRICS["msf"], "kid": kid, "label_accuracy": 0.75 + k / 8}, PROTOCOL)
        put_json(f"samples/msf-seed-{k}/costs.json", COST)
        sealed(f"samples/msf-seed-{k}")
        memory = {"peak_memory_bytes": (3 + k) * 2**20}
        timings.write(f"sample-msf-seed-{k}", SAMPLES / f"msf-seed-{k}/costs.json", memory)
        for old, new in names.items():
            history = shutil.copytree(f"models/msf/{old}", f"models/msf-seed-{k}/{new}") / Path("history.jsonl")
            timings.write(new, history, {"train_seconds": SECONDS[old] + k})
    put_json("reports/costs.json", dict.fromkeys([*METRICS, "msf-seed-1", "msf-seed-2"], COST))
    timings.write("sampling", COSTS, SAMPLING)
    project.change(changes)
    (table,) = made(project).tables
    assert [row[0] for row in table[1:]] == ["msf", "dit", "real", "autoencoder"]
    assert columns(table, "KID-EffLite0")["msf"] == "0.2500 ± 0.0200"
    assert columns(table, "trainings") == {"dit": "1", "msf": "3 (sd 0.1250)", "real": "-", "autoencoder": "-"}
    assert columns(table, "label accuracy")["msf"] == "87.5%" and columns(table, "s/image")["msf"] == "0.5"
    assert (
        columns(table, "training s")["msf"] == f"{30.75 + (2 + 4) / 3:.0f}" and columns(table, "peak")["msf"] == "4 MiB"
    )
    assert "standard deviation of KID over them" in told()
    # The error of a mean of three trainings is 0.125 / sqrt(3), twice of which is as wide as t of two degrees asks;
    # of one training its error over images is known alone.
    wide = 0.125 / 3**0.5 * 4.3027
    error = f"({(wide**2 + 0.02**2) ** 0.5:.4f}, over 3 trainings of msf and the images of one of dit)"
    assert f"significant at 2 standard errors of the difference {error}." in told()
    again = [row[:3] for table in whole().tables for row in table if row[1].startswith("dvc repro ")]
    commands = [(name, f"dvc repro evaluate@{name}") for name in ("msf", "msf-seed-1", "msf-seed-2", "dit")]
    commands += [(name, f"dvc repro floor@{name}") for name in FLOORS]
    assert again == [[name, command, f"samples/{name}/images.safetensors"] for name, command in commands]
    pictures = {path.name for path in Path("reports/galleries").iterdir()}
    assert "msf-grid.png" in pictures and "msf-seed-1-grid.png" not in pictures
    assert "msf-0-seed-1" in Path("reports/training.csv").read_text()
    images = Path("samples/msf-seed-1/images.safetensors")
    with flipped(images, images.stat().st_size // 2, 3):
        refused(project.stage("report"), f"error: {images}: damaged", "makes it")


def test_other_numbers_of_steps_are_means_over_the_trainings_too():
    cost = {"steps": 4, "n": 8, "network_calls": 4.0}
    one = {"steps": [cost | {"kid": 0.25, "kid_se": 0.02, "label_accuracy": 0.5}, {"steps": 6}]}
    two = {"steps": [cost | {"kid": 0.5, "kid_se": 0.04, "label_accuracy": 1.0}]}
    common = {"kid": 0.1, "copies": False}
    found = rows._averaged([common | one, common | two])["steps"]
    assert found == [cost | {"kid": 0.375, "kid_se": 0.03, "label_accuracy": 0.75}], "all have been sampled with 4"
    without = [{"steps": [cost | {"kid": 0.25, "kid_se": 0.02, "label_accuracy": None}]}] * 2
    assert rows._averaged([common | each for each in without])["steps"] == without[0]["steps"], "no classes"


def test_trainings_that_were_measured_unlike_are_not_averaged(measured):
    project = measured(n=41)
    project.change({"methods.msf.repeat_of": "dit"})
    assert sorted(table[1][0] for table in made(project).tables) == ["dit", "msf"]


@pytest.mark.parametrize(
    "kid, error, apart, bound",
    [
        (0.24, 0.01, False, "0.0283"),
        (0.2, 0.01, True, "0.0283"),
        (0.2, 0.03, False, "0.0632"),
    ],
)
def test_a_lead_is_significant_by_both_intervals(measured, kid, error, apart, bound):
    made(measured({"kid": kid, "kid_se": error}))
    verdict = "significant" if apart else "not significant"
    error = f"({bound}, over images alone, not paired by seed)"
    wanted = f"{0.25 - kid:.4f} below dit, {verdict} at 2 standard errors of the difference {error}."
    assert f"Best KID-EffLite0: msf, {wanted}" in told()


@pytest.mark.parametrize("second, tau", [(0.25, "1.00"), (0.75, "-1.00")])
def test_the_rankings_of_two_extractors_are_compared(measured, second, tau):
    made(measured({"kid_second": second}))
    assert f"Kendall's tau of the rankings by KID-EffLite0 and KID-EffLite2: {tau}." in told()
    first, rest = ("msf", "dit") if second < 0.5 else ("dit", "msf")
    assert f"Best KID-EffLite2: {first}, 0.2500 below {rest}" in told()


def test_without_a_second_extractor_there_is_no_second_kid(measured):
    project, without = measured(), dict.fromkeys(("second_extractor", "second_metric", "second_resize"))
    for name, own in (METRICS | FLOORS).items():
        put_measured(name, {k: v for k, v in {**REST, **own}.items() if "second" not in k}, PROTOCOL | without)
    (table,) = made(project).tables
    assert [head for head in table[0] if head.startswith("KID-")] == ["KID-EffLite0", "KID-EffLite0, test split"]
    assert "Kendall" not in told()


@pytest.mark.parametrize("features, mark", [(41, "*"), (40, "")])
def test_fd_is_marked_where_it_has_more_features_than_images(measured, features, mark):
    project = measured()
    for name, own in (METRICS | FLOORS).items():
        put_measured(name, {**REST, "kid_second": 1.0, **own}, PROTOCOL | {"features": features})
    (table,) = made(project).tables
    assert f"FD-EffLite0{mark}" in table[0] and ("covariances are singular" in told()) == bool(mark)
