"""A recipe for a set of images fits what is in it, and its first stages run; what cannot be used is refused."""

from __future__ import annotations

import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from packed import as_idx, as_parquet, encoded
from PIL import Image

from stages import recipe
from stages.common import settings
from stages.common.errors import BadInput
from stages.common.images import class_names, count
from stages.datasets import item
from stages.recipes import propose


def picture(tone: int, shape: tuple[int, ...] = (70, 90, 3)) -> bytes:
    """A picture of a colour that no grey image has, or a grey one if the shape has no third axis."""
    pixels = np.full(shape, tone, np.uint8)
    if len(shape) == 3:
        pixels[..., 0] = 255 - tone
    return encoded(pixels)


def folder(number: int, kinds: tuple[str, ...] = ("boot", "shoe"), **options: object) -> Path:
    for index in range(number):
        path = Path("mine", kinds[index % len(kinds)], f"{index}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(index % 100, **options))
    return Path("mine")


def as_zip(number: int) -> Path:
    with zipfile.ZipFile("mine.zip", "w") as archive:
        for index in range(number):
            archive.writestr(f"{'boot' if index % 2 else 'shoe'}/{index}.png", picture(index % 100))
    return Path("mine.zip")


def as_idx_files(number: int) -> Path:
    as_idx("mine/train-images-idx3-ubyte", np.zeros((number, 28, 28)))
    as_idx("mine/train-labels-idx1-ubyte", np.arange(number) % 2)
    as_idx("mine/t10k-images-idx3-ubyte.gz", np.zeros((20, 28, 28)))
    return as_idx("mine/t10k-labels-idx1-ubyte.gz", np.arange(20) % 2).parent


def as_table(number: int) -> Path:
    labels = ["boot" if index % 2 else "shoe" for index in range(number)]
    return as_parquet("mine.parquet", picture=[picture(index % 100) for index in range(number)], category=labels)


@pytest.mark.parametrize(
    "make, resolution, channels, names",
    [
        (folder, 64, 3, ["boot", "shoe"]),
        (as_zip, 64, 3, ["boot", "shoe"]),
        (as_table, 64, 3, ["boot", "shoe"]),
        (as_idx_files, 32, 1, []),
    ],
)
def test_the_recipe_of_every_kind_of_source_is_valid_and_its_first_stages_run(
    project, make, resolution, channels, names
):
    done = project.stage("recipe", "new", "mine", "--images", str(make(120)))
    assert done.returncode == 0 and not done.stderr and "next: make demo RECIPE=mine" in done.stdout
    made = recipe.experiment_of("mine")
    assert (made.data.resolution, made.data.channels) == (resolution, channels)
    assert list(made.methods) == list(recipe.experiment_of("embedded").methods)
    assert project.stage("recipe", "mine", "--force").returncode == 0
    small = {"images": 16, "batch": 8, "log_images": 8}
    project.change({"vae.widths": [8, 8, 8]} | {f"vae.training.{key}": value for key, value in small.items()})
    for stage in ("code", "download", "vae"):
        done = project.stage(stage)
        assert done.returncode == 0, done.stderr
    assert class_names() == names
    found = propose.look("mine", Path(made.data.path))[1].splits
    assert found == {split: number for split in found if (number := count(split))}


def test_what_is_written_fits_the_count(project):
    """Worked out by hand: 60 epochs of the longest training, 32,000 images, are all of it from 534 images on."""
    propose.run("few", str(folder(100)))
    made, base = recipe.experiment_of("few"), recipe.experiment_of("embedded")
    train = propose.look("few", Path("mine"))[1].splits["train"]
    assert 60 < train < 100
    assert made.parts["dit"].training.images == base.training.images * 0.2 == made.training.images
    assert made.vae.training.images == base.vae.training.images * 0.2
    assert made.students["swd"].training.images == base.students["swd"].training.images * 0.2
    assert made.training.warmup_images == base.training.warmup_images * 0.2
    assert made.sample.images == 100 and made.evaluate.reference_images is None
    assert made.latents.resolutions == made.vae.resolutions == [32, 48, 64]
    assert made.decompose["residual"].resolutions == [48, 64]
    assert made.students["swd"].schedule.resolutions == [32, 48, 64, 64]
    assert made.students["swd"].schedule.sigmas == base.students["swd"].schedule.sigmas


def survey(**changes: object) -> propose.Survey:

    values = {"splits": Counter(train=1000, test=200), "classes": ["a", "b"], "sizes": np.array([[64, 64]])}
    return propose.Survey(**(values | {"grey": False, "seconds": 0.0} | changes))


@pytest.mark.parametrize(
    "sizes, resolution",
    [([64] * 100, 64), ([63] * 4 + [64] * 96, 64), ([63] * 10 + [64] * 90, 32), ([28] * 100, 32), ([8] * 100, 32)],
)
def test_the_resolution_is_one_that_few_images_are_smaller_than(sizes, resolution):
    assert survey(sizes=np.array([[300, size] for size in sizes])).resolution == resolution


def test_time_grows_with_pixels_and_budgets_and_the_seconds_of_the_images():
    """By hand: MSF's trainings of 140 s, its 21 s of sampling and 40 s of the rest, four times the pixels."""
    full = {"train": 1000, "test": 0}

    assert survey(splits=Counter(full)).minutes(False) == round((40 + 4 * (140 + 21)) / 60)
    assert survey(splits=Counter(full), sizes=np.array([[32, 32]])).minutes(True) == round((155 + 555 + 137) / 60)
    assert survey(splits=Counter(full), seconds=0.6).minutes(False) == round((40 + 4 * (140 + 21) + 600) / 60)


def test_without_classes_guidance_is_off_and_without_test_images_there_is_no_floor(project):
    for index in range(60):
        path = Path("mine/train", f"{index}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(index, (20, 20)))
    propose.run("plain", "mine")
    made = recipe.experiment_of("plain")
    text = Path("params/recipes/plain.yaml").read_text()
    assert "guidance_scale: 1.0" in text and made.evaluate.floors == []
    assert [scale.guidance_scale for scale in made.methods["msf"].scales] == [1.0, 1.0]
    steps = [scale.steps for scale in recipe.experiment_of("embedded").methods["msf"].scales]
    assert [scale.steps for scale in made.methods["msf"].scales] == steps
    assert made.methods["ddpm"].solver.guidance_scale == made.students["swd"].dmd.guidance_scale == 1.0
    assert made.data.resize == "box-bicubic" and made.data.channels == 1


@pytest.mark.parametrize(
    "name, images, said",
    [
        ("embedded", "mine", "NAME: 'embedded' is not allowed; allowed: another name"),
        ("new", "mine", "NAME: 'new'"),
        ("../mine", "mine", "NAME: '../mine'"),
        ("mine", "nowhere", "--images: 'nowhere' is not allowed; allowed: an existing folder"),
        ("mine", "empty", "--images: empty holds neither images nor"),
        ("mine", "few", "--images: 'few' is not allowed; allowed: at least 32 training images"),
        ("mine", "broken", "--images: 'broken' is not allowed; allowed: images that can be read (50 of 100 cannot"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line_and_nothing_is_written(project, name, images, said):
    folder(40)
    Path("empty").mkdir()
    for where, number in (("few", 5), ("broken", 100)):
        Path(where).mkdir()
        for index in range(number):
            Path(where, f"{index}.png").write_bytes(b"none" if index % 2 and where == "broken" else picture(9))
    before = project.files()
    done = project.stage("recipe", "new", name, "--images", images)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("error: recipe new: ") and said in done.stderr, done.stderr
    assert project.files() == before


def test_an_image_of_too_many_pixels_is_not_decoded(project, monkeypatch):
    monkeypatch.setattr(item, "LARGEST", 90 * 70 - 1)
    with pytest.raises(BadInput, match=r"100 of 100 cannot; boot/0.png: 90 x 70 pixels, more than 6,299 in all"):
        propose.look("mine", folder(100))


def test_a_valid_recipe_is_what_the_stages_read(project):
    propose.run("mine", str(folder(60)))
    recipe.switch("mine", force=True)
    assert settings.load() == recipe.experiment_of("mine")


def test_grey_pictures_saved_in_colour_are_grey(project):
    Path("mine").mkdir()
    for index in range(40):
        Image.new("RGB", (64, 64), (index, index, index)).save(f"mine/{index}.jpg")
    assert propose.look("mine", Path("mine"))[1].grey


def test_an_unreadable_set_names_no_file_of_settings(project):
    with pytest.raises(BadInput, match="^recipe new: --images: "):
        propose.look("mine", Path("nowhere"))
