"""The classes of samples, in turn or with their frequencies in the training data; the grid, one class a column."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch
from conftest import Project, sealed
from PIL import Image

from multiscale import pictures
from multiscale.core.storage import Table
from multiscale.core.streams import classes_of_seeds, generator
from stages import sample
from stages.common import settings as settings_of
from stages.common.errors import BadInput
from stages.common.images import CLASS_NAMES, SCHEMA, class_counts
from stages.common.paths import IMAGES, SAMPLES
from stages.schema.data import Sample

COUNTS = [60, 0, 25, 10, 5]  # training images of each class


class Painter:
    """A fake trained method: an image of class c is a square of grey level 40 c + 10."""

    def __init__(self, name, params):
        pass

    def make(self, seeds, labels, steps=0):
        return (40 * labels + 10 + steps).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 32, 32)

    def strip(self, seeds, labels, names):
        return Image.new("RGB", (8, 8))

    def memory(self):
        return {}

    def cost(self, labels, steps=0):
        return {"network_calls": 2 * steps, "flops_per_image": 100 * steps, "parameters": 7}


@pytest.fixture
def painted(project, monkeypatch):
    """Runs the stage on unbalanced data with settings of `sample`, and returns the labels and the grid."""
    labels = [(label, "train") for label, count in enumerate(COUNTS) for _ in range(count)] + [(4, "test")] * 300
    rows = [(f"{i}", split, label) for i, (label, split) in enumerate(labels)]
    IMAGES.parent.mkdir(exist_ok=True)
    pl.DataFrame(rows, schema=SCHEMA, orient="row").write_parquet(IMAGES)
    sealed(IMAGES)
    monkeypatch.setattr(sample, "Artist", Painter)
    monkeypatch.setattr(sample, "check", lambda name, params: None)

    def painted(**settings: object) -> tuple[torch.Tensor, np.ndarray]:
        project.change({f"sample.{key}": value for key, value in settings.items()})
        sample.main(settings_of.load(), "dit")
        rows = Table.open(SAMPLES / "dit" / "images.safetensors")[slice(None)]
        assert torch.equal(rows["pixels"][:, 0, 0, 0], (40 * rows["label"] + 10).to(torch.uint8))
        return rows["label"], np.asarray(Image.open(SAMPLES / "dit" / "grid.png"))

    return painted


def test_classes_are_drawn_as_often_as_the_data_have_them():
    counts, n = torch.tensor(COUNTS), 20_000
    found = torch.bincount(classes_of_seeds(list(range(n)), counts), minlength=5) / n
    share = counts / counts.sum()
    assert ((found - share).abs() <= 3 * (share * (1 - share) / n).sqrt()).all()
    assert found[1] == 0


def test_the_class_of_a_seed_is_the_seeds_alone():
    counts = torch.tensor(COUNTS)
    whole = classes_of_seeds(list(range(100)), counts)
    assert torch.equal(classes_of_seeds([70, 3, 41], counts), whole[[70, 3, 41]])
    # A stream of its own, and a place among the training images: the first 60 are of class 0.
    place = int(torch.randint(100, (), generator=generator(41, "class")))
    assert int(whole[41]) == np.repeat(np.arange(5), COUNTS)[place]


def test_the_training_split_alone_is_counted(painted):
    assert class_counts().tolist() == COUNTS


def test_uniform_labels_go_round_the_classes_whatever_the_seeds_and_the_data(painted):
    labels, _ = painted(labels="uniform", images=23, batch=4, first_seed=7)
    assert torch.equal(labels, torch.arange(23) % 5)


def test_a_class_without_training_images_is_refused_after_a_later_edit_of_the_labels_too(painted):
    rows = pl.read_parquet(IMAGES).with_columns(
        label=pl.when(pl.col("split") == "test").then(5 + pl.int_range(pl.len()) % 2).otherwise("label")
    )
    rows.write_parquet(IMAGES)
    sealed(IMAGES)
    assert set(painted(labels="data", images=40)[0].tolist()) <= {0, 2, 3, 4}
    line = "params.yaml: sample.labels: uniform, but no training image is of the class 5, 6; allowed: data, or training"
    with pytest.raises(BadInput, match=re.escape(line)):
        painted(labels="uniform")


def test_labels_of_the_data_depend_neither_on_the_batch_nor_on_the_count(painted):
    whole, _ = painted(labels="data", images=60, batch=60)
    assert torch.equal(whole, classes_of_seeds(list(range(60)), torch.tensor(COUNTS)))
    assert torch.equal(painted(labels="data", images=60, batch=7)[0], whole)
    assert torch.equal(painted(labels="data", images=40, batch=7)[0], whole[:40])
    assert torch.equal(painted(labels="data", images=40, batch=7, first_seed=20)[0], whole[20:])


@pytest.mark.parametrize("method", ["dit", "msf"])
def test_batches_of_another_size_also_of_more_images_than_there_are_round_a_few_pixels_differently(
    method, trained, working_copy
):
    project, found = Project(working_copy(trained)), []
    for batch in (1, 7, 64):
        project.change({"sample.batch": batch, "sample.precision": "fp32"})
        done = project.stage("sample", method)
        assert done.returncode == 0, done.stderr
        found.append(Table.open(SAMPLES / method / "images.safetensors")[slice(None)])
    assert len(found[0]["pixels"]) == 20 and len(found[0]["pixels"].unique()) > 20
    for other in found[1:]:
        assert torch.equal(other["label"], found[0]["label"])
        apart = (other["pixels"].int() - found[0]["pixels"].int()).abs()
        assert apart.max() <= 1 and apart.sum() <= apart.numel() / 1000, "grey levels"


def test_further_numbers_of_steps_sample_the_first_images_again_and_say_what_they_cost(painted, project):
    project.change({"methods.dit.steps": [8, 2]})
    labels, _ = painted(images=30, batch=4, step_images=10)
    for steps in (8, 2):
        rows = Table.open(SAMPLES / "dit" / f"images-{steps}.safetensors")[slice(None)]
        assert torch.equal(rows["label"], labels[:10])
        assert torch.equal(rows["pixels"][:, 0, 0, 0], (40 * labels[:10] + 10 + steps).to(torch.uint8))
    told = {str(steps): {"network_calls": 2 * steps, "flops_per_image": 100 * steps} for steps in (8, 2)}
    assert json.loads((SAMPLES / "dit" / "steps.json").read_text()) == told


def test_the_images_of_further_numbers_of_steps_are_of_all_classes_and_of_the_whole_list_of_prompts():
    """Of 1,000 classes in turn, or of prompts in the order of their topics, the first 250 would be a quarter."""
    section = Sample(images=2000, step_images=250)
    assert sample.chosen(section, 10, False).tolist() == [*range(250)], "the first have every class as often"
    assert sample.chosen(section.model_copy(update={"labels": "data"}), 1000, False).tolist() == [*range(250)]
    for kinds, prompted, whole in ((1000, False, 1000), (1, True, 2000)):
        rows = sample.chosen(section, kinds, prompted)
        quarters = torch.bincount(rows % whole * 4 // whole, minlength=4)
        assert len(rows.unique()) == 250 and (rows.diff() > 0).all() and quarters.min() > 40
    few = section.model_copy(update={"images": 100})
    assert sample.chosen(few, 1, True).tolist() == sample.chosen(few, 1, False).tolist() == [*range(100)]


@pytest.mark.parametrize("columns, wide", [(3, 1), (10, 2)])
def test_the_grid_shows_each_class_in_columns_of_its_own_and_leaves_places_empty(columns, wide, painted):
    labels, grid = painted(labels="data", images=40, batch=40, grid_rows=4, grid_columns=columns)
    made = torch.bincount(labels, minlength=5).tolist()
    shown = [label for label, count in enumerate(made) if count][:columns]
    assert made[1] == 0 and 0 < made[4] < 4, "a class without images, and one with fewer than rows"
    step, top = 64 + pictures.GAP, 52  # an image of 32 is shown at 64
    assert grid.shape[1] >= len(shown) * wide * step + pictures.GAP  # wider where the title is
    assert grid.shape[0] == top + 4 * step
    for row in range(4):
        for column in range(len(shown) * wide):
            label = shown[column // wide]
            expected = 40 * label + 10 if row * wide + column % wide < made[label] else 255
            assert (grid[top + row * step + 5, pictures.GAP + column * step + 5] == expected).all()


def test_the_grid_of_uniform_labels_is_filled_row_by_row(painted):
    _, grid = painted(labels="uniform", images=23, batch=23, grid_rows=6, grid_columns=10)
    step, top = 64 + pictures.GAP, 52
    assert grid.shape[:2] == (top + 5 * step, 5 * step + pictures.GAP)
    for index in range(25):
        row, column = divmod(index, 5)
        expected = 40 * column + 10 if index < 23 else 255
        assert (grid[top + row * step + 5, pictures.GAP + column * step + 5] == expected).all()
    assert not list(Path(SAMPLES).glob(".*"))


def test_images_with_captions_stand_over_them_chosen_from_all(painted):
    """Classes of captioned images have captions as names; the choice does not begin with the first classes alone."""
    rows = pl.read_parquet(IMAGES).with_columns(caption=pl.lit("a caption"))
    table = rows.to_arrow(compat_level=pl.CompatLevel.oldest())
    about = {CLASS_NAMES: json.dumps([f"a caption of class {label}" for label in range(5)])}
    pq.write_table(table.replace_schema_metadata(about), IMAGES)
    sealed(IMAGES)
    labels, grid = painted(labels="data", images=40, batch=40, grid_rows=2, grid_columns=3)
    wide, high, gap = 96 + 2 * pictures.GAP, 34, pictures.GAP
    places = [(row, column) for row in (high, grid.shape[0] // 2 + high) for column in range(3)]
    tones = [int(grid[row + 5, gap + column * wide + 5, 0]) for row, column in places]
    assert {(tone - 10) % 40 for tone in tones} == {0} and tones != [40 * label + 10 for label in labels[:6]]
    shown = torch.tensor(tones, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 32, 32)
    captions = [f"a caption of class {(tone - 10) // 40}" for tone in tones]
    assert np.array_equal(grid, pictures.captioned(shown, captions, 3, "dit: seeds from 0 on"))
