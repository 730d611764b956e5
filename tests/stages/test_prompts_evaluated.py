"""Images with prompts in evaluation and on the leaderboard; what is asked of other images is refused."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
import torch
from conftest import write_images
from tiny_published import small_clip

from multiscale.evaluation.prompts import Scorer, diversity
from stages import evaluate
from stages.common.errors import BadInput
from stages.common.paths import IMAGES, SAMPLES
from stages.reporting import leaderboard
from stages.reporting.rows import Group
from stages.schema.data import Evaluate

SAID = ["two ones", "a seven above a three", "three"]


@pytest.fixture
def told(tmp_path, monkeypatch) -> list[str]:
    """A data set with captions, and samples with prompts; the caption of each training image."""
    monkeypatch.chdir(tmp_path)
    write_images(IMAGES, 60)
    frame = pl.read_parquet(IMAGES).with_row_index("row")
    caption = pl.col("row").map_elements(lambda row: SAID[row * row % 7 % 3], pl.String)
    frame = frame.with_columns(caption=caption).drop("row")
    frame.write_parquet(IMAGES)
    (SAMPLES / "swd").mkdir(parents=True)
    pl.DataFrame({"prompt": [SAID[k % 3] for k in range(12)]}).write_parquet(SAMPLES / "swd" / "prompts.parquet")
    return frame.filter(pl.col("split") == "train")["caption"].to_list()


def section(**given: object) -> Evaluate:
    return Evaluate.model_validate({"extractor": "efficientnet-lite0"} | given)


def test_the_reference_is_told_by_the_captions_of_its_images_and_scores_have_their_protocol(told):
    small_clip(Path("clip"), SAID)
    found, real = torch.randn(12, 4), torch.randn(20, 4)
    pixels = torch.randint(0, 256, (12, 1, 32, 32), dtype=torch.uint8)
    values, how = evaluate.of_prompts("swd", section(clip_score="clip", pick_score="clip"), found, real, pixels)
    captions, said = [told[k * len(told) // 20] for k in range(20)], [SAID[k % 3] for k in range(12)]
    assert len(told) > 40 and (values["diversity"], values["diversity_se"]) == diversity(found, said, real, captions)
    clip, pick = (each.double().numpy() for each in Scorer(Path("clip")).scores(pixels, said))
    for key, scores in (("clip_score", clip), ("pick_score", pick)):
        assert values[key] == pytest.approx(scores.mean(), rel=1e-5)
        assert values[f"{key}_se"] == pytest.approx(scores.std(ddof=1) / 12**0.5, rel=1e-4)
        name, digest = how[key].split()
        assert name == "clip" and len(digest) == 16
    assert how["prompts"] == 3


def test_images_without_prompts_have_no_such_measures(told):
    assert evaluate.of_prompts("ddpm", section(), torch.randn(4, 2), torch.randn(4, 2), torch.zeros(4)) == ({}, {})


def test_a_folder_that_is_no_clip_is_one_line(told):
    Path("other").mkdir()
    Path("other/config.json").write_text("{}")
    with pytest.raises(BadInput, match=r"^params.yaml: evaluate.pick_score: 'other' is not allowed; allowed: a CLIP "):
        evaluate.of_prompts("swd", section(pick_score="other"), torch.randn(12, 2), torch.randn(9, 2), torch.zeros(12))


def test_the_label_accuracy_of_prompts_is_their_alignment_and_columns_of_others_are_left_out():
    protocol = {"metric": "x", "second_metric": None, "second_extractor": None, "features": 1, "n": 2, "prompts": 3}
    row = {"method": "swd", "kind": "method", "label_accuracy": 0.8, "diversity": 0.5, "diversity_se": 0.01}
    columns = {key: leaderboard.COLUMNS[key] for key in ("method", "label_accuracy", "diversity", "clip_score")}
    heads, rows, _ = leaderboard.table(Group(protocol, [row], []), 0.9, columns)
    assert heads == ["method", "alignment (the classifier on real images: 90.0%)", "diversity"]
    assert rows == [["swd", "80.0%", "0.5000 +- 0.0100"]]
    del protocol["prompts"], row["diversity"], row["diversity_se"]
    heads, _, _ = leaderboard.table(Group(protocol, [row], []), None, columns)
    assert heads == ["method", "label accuracy"]
