"""Published data sets are read as they are published: their splits and classes, without masks or unlabelled images."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.common.errors import BadInput
from stages.datasets import sources
from stages.schema.data import Data

WNIDS = ("n01440764", "n01443537")
DEVKIT = "ILSVRC2012_devkit_t12/data"
CAPTION = {"caption_column": "caption"}


def put(files: dict[str, str | bytes | None]) -> None:
    """Writes files below `set`: text, bytes, or an image."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    for name, content in files.items():
        path = Path("set", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is os.mkfifo:
            os.mkfifo(path)
        else:
            path.write_bytes(
                buffer.getvalue() if content is None else content.encode() if type(content) is str else content
            )


@pytest.fixture
def found(tmp_path, monkeypatch):
    """Reads files as a data set: the name of each image -> its split, label and the name of its class."""
    monkeypatch.chdir(tmp_path)

    def found(files: dict[str, str | bytes | None], **settings: object) -> dict[str, tuple[str, int, str]]:
        put(files)
        about = {"name": "set", "source": "files", "path": "set", "resolution": 8, "channels": 3, "test_share": 0.0}
        items = sources.items(Data.model_validate(about | {"validation_share": 0.0} | settings))
        found.captions = {Path(item.id).name: item.caption for item in items}
        return {Path(item.id).name: (item.split, item.label, item.kind) for item in items}

    return found


def images(*names: str) -> dict[str, None]:
    return dict.fromkeys(names)


def meta() -> bytes:
    """meta.mat as the devkit has it: synsets in an order of their own, those of the tree's inner nodes too."""
    from scipy.io import savemat

    rows = [(1, WNIDS[1], 0), (2, WNIDS[0], 0), (1001, "n00001740", 2)]
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("num_children", "O")]
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": np.array(rows, kinds).reshape(-1, 1)})
    return buffer.getvalue()


TRAIN = images(*(f"ILSVRC/Data/CLS-LOC/train/{wnid}/{wnid}_{k}.JPEG" for wnid in WNIDS for k in (1, 2)))
VAL = images(*(f"ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_0000000{k}.JPEG" for k in (1, 2, 3)))
TEST = images("ILSVRC/Data/CLS-LOC/test/ILSVRC2012_test_00000001.JPEG")
KAGGLE = "ImageId,PredictionString\nILSVRC2012_val_00000003,n01440764 1 2 3 4 n01440764 5 6 7 8\n"
KAGGLE += "ILSVRC2012_val_00000001,n01443537 1 2 3 4\nILSVRC2012_val_00000002,n01440764 1 2 3 4\n"
ANSWERS = {
    "Kaggle": {"ILSVRC/LOC_val_solution.csv": KAGGLE},
    "the devkit": {f"{DEVKIT}/ILSVRC2012_validation_ground_truth.txt": "1\n2\n2\n", f"{DEVKIT}/meta.mat": meta()},
}


@pytest.mark.parametrize("answers", ANSWERS.values(), ids=ANSWERS.keys())
def test_imagenets_flat_validation_images_have_the_classes_of_their_answers(found, answers, capsys):
    rows = found(TRAIN | VAL | TEST | answers)
    assert {name: row for name, row in rows.items() if "val" in name} == {
        "ILSVRC2012_val_00000001.JPEG": ("validation", 1, WNIDS[1]),
        "ILSVRC2012_val_00000002.JPEG": ("validation", 0, WNIDS[0]),
        "ILSVRC2012_val_00000003.JPEG": ("validation", 0, WNIDS[0]),
    }
    assert rows["n01443537_2.JPEG"] == ("train", 1, WNIDS[1]) and len(rows) == 7
    assert "the layout is that of imagenet: 1 images are left out" in capsys.readouterr().err


def test_imagenets_validation_images_in_folders_of_classes_are_as_in_any_set(found):
    rows = found(TRAIN | images("ILSVRC/Data/CLS-LOC/val/n01443537/ILSVRC2012_val_00000001.JPEG"))
    assert rows["ILSVRC2012_val_00000001.JPEG"] == ("validation", 1, WNIDS[1])
    assert rows["n01440764_1.JPEG"] == ("train", 0, WNIDS[0])


def test_imagenets_validation_images_without_answers_are_refused(found):
    with pytest.raises(BadInput, match=r"^ILSVRC2012_val_\*.JPEG: their classes .*LOC_val_solution.csv, or .*meta.mat"):
        found(TRAIN | VAL)


PARTITION = "000001.jpg 0\n000002.jpg 1\n000003.jpg 2\n000004.jpg 0\n"


@pytest.mark.parametrize(
    "table",
    [
        {"Eval/list_eval_partition.txt": PARTITION},
        {"list_eval_partition.csv": "image_id,partition\n" + PARTITION.replace(" ", ",")},
    ],
    ids=["txt", "csv"],
)
def test_celeba_has_its_published_splits_and_no_classes(found, table):
    names = [f"00000{k}.jpg" for k in (1, 2, 3, 4)]
    aligned = images(*(f"img_align_celeba/img_align_celeba/{name}" for name in names))
    rows = found(aligned | images("img_celeba/000001.jpg") | table)
    assert rows == dict(zip(names, [(split, 0, "") for split in ("train", "validation", "test", "train")]))


def kaggle(*rows: str) -> dict[str, str]:
    return {"LOC_val_solution.csv": "\n".join(["ImageId,PredictionString", *rows])}


def devkit(truth: str, content: bytes) -> dict[str, str | bytes]:
    return {"ILSVRC2012_validation_ground_truth.txt": truth, "meta.mat": content}


FEW = images("ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00000002.JPEG")
CELEBA, MAPPING = images("img_align_celeba/000001.jpg"), "CelebA-HQ-to-CelebA-mapping.txt"
DAMAGED = {
    "no number": CELEBA | {"list_eval_partition.txt": "000001.jpg three\n"},
    "a negative number": CELEBA | {"list_eval_partition.txt": "000001.jpg -1\n"},
    "a partition in Latin-1": CELEBA | {"list_eval_partition.txt": b"\xff 0\n"},
    "a pipe": CELEBA | {"list_eval_partition.txt": os.mkfifo},
    "a mapping in Latin-1": images("CelebA-HQ-img/0.jpg") | {MAPPING: b"\xff\n"},
    "a pipe as a mapping": images("CelebA-HQ-img/0.jpg") | {MAPPING: os.mkfifo},
    "other columns": FEW | {"LOC_val_solution.csv": "a,b\n1,2\n"},
    "another name": FEW | kaggle("one,n01440764 1 2 3 4"),
    "no class": FEW | kaggle("ILSVRC2012_val_00000001,"),
    "too few rows": FEW | kaggle("ILSVRC2012_val_00000001,n01440764 1 2 3 4"),
    "a long field": FEW | kaggle("x" * 200_000 + ",n01440764"),
    "classes in Latin-1": FEW | {"LOC_val_solution.csv": b"\xff"},
    "a pipe of classes": FEW | {"LOC_val_solution.csv": os.mkfifo},
    "no synsets": FEW | devkit("1\n2\n", b""),
    "damaged synsets": FEW | devkit("1\n2\n", meta()[:128] + bytes(500)),
    "too few labels": FEW | devkit("1\n", meta()),
    "unknown labels": FEW | devkit("1\n7\n", meta()),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_beside_images_is_refused_by_its_name(found, case):
    names = "|".join(name for name, content in DAMAGED[case].items() if content is not None)
    with pytest.raises(BadInput, match=rf"^({names}): cannot be read \(.+\); allowed: .+"):
        found(DAMAGED[case])


def test_celeba_hq_is_without_its_masks_and_in_the_splits_of_celeba(found):
    files = images("CelebAMask-HQ/CelebA-HQ-img/0.jpg", "CelebAMask-HQ/CelebA-HQ-img/1.jpg")
    files |= images("CelebAMask-HQ/CelebAMask-HQ-mask-anno/0/00000_hair.png")
    assert found(files) == {"0.jpg": ("train", 0, ""), "1.jpg": ("train", 0, "")}, "a hash, as in sets without splits"
    mapping = "idx        orig_idx    orig_file\n0    2      000003.jpg\n1    0     000001.jpg\n"
    files["CelebAMask-HQ/CelebA-HQ-to-CelebA-mapping.txt"] = mapping
    files["list_eval_partition.txt"] = PARTITION
    assert found(files) == {"0.jpg": ("test", 0, ""), "1.jpg": ("train", 0, "")}


@pytest.mark.parametrize("ending", ["", "_lmdb"])
def test_lsun_is_of_the_categories_of_its_folders_however_deep_the_images_lie(found, ending):
    files = images(f"church_outdoor_train{ending}/0/0/3/a/1.webp", f"church_outdoor_train{ending}/f/2.webp")
    assert found(files) == {f"{k}.webp": ("train", 0, "church_outdoor") for k in (1, 2)}
    files |= images(f"church_outdoor_val{ending}/3.webp", f"bedroom_train{ending}/0/4.webp")
    rows = found(files)
    assert rows["3.webp"] == ("validation", 1, "church_outdoor") and rows["4.webp"] == ("train", 0, "bedroom")


def test_ffhqs_folders_of_thousands_are_no_classes_and_its_last_ten_thousand_validate(found):
    names = ["00000", "00999", "01000", "59999", "60000", "69999"]
    files = images(*(f"ffhq/images1024x1024/{name[:2]}000/{name}.png" for name in names))
    rows = found(files | images("ffhq/thumbnails128x128/00000/00000.png") | {"ffhq/ffhq-dataset-v2.json": "{}"})
    assert rows == {f"{name}.png": ("train" if name < "60000" else "validation", 0, "") for name in names}


def test_afhq_is_split_class_and_name(found):
    rows = found(images("afhq/train/cat/1.jpg", "afhq/train/dog/2.jpg", "afhq/val/dog/3.jpg"))
    assert rows == {"1.jpg": ("train", 0, "cat"), "2.jpg": ("train", 1, "dog"), "3.jpg": ("validation", 1, "dog")}


def annotations(*rows: tuple[int, int, str]) -> str:
    ids = sorted({image for _, image, _ in rows})
    told = [{"id": number, "image_id": image, "caption": text} for number, image, text in rows]
    return json.dumps({"images": [{"id": each, "file_name": f"{each:012}.jpg"} for each in ids], "annotations": told})


COCO = images("train2017/000000000009.jpg", "val2017/000000000025.jpg", "test2017/000000000001.jpg")
COCO["annotations/captions_train2017.json"] = annotations((7, 9, "Second."), (3, 9, "A plate\n of  food. "))
COCO["annotations/captions_val2017.json"] = annotations((1, 25, "A giraffe."))


def test_coco_has_the_first_caption_of_each_image_and_its_published_splits(found):
    rows = found(COCO, **CAPTION)
    assert rows == {"000000000009.jpg": ("train", 0, ""), "000000000025.jpg": ("validation", 0, "")}
    assert found.captions == {"000000000009.jpg": "A plate of food.", "000000000025.jpg": "A giraffe."}


def test_coco_without_captions_has_none(found):
    assert len(found(COCO)) == 2 and set(found.captions.values()) == {""}


NUMBERS = json.dumps({"images": [], "annotations": [7]})


@pytest.mark.parametrize("content", ["{", '{"images": []}', "[]", NUMBERS, annotations((7, 9, 7)), "[" * 200_000])
def test_annotations_that_are_not_cocos_are_refused(found, content):
    with pytest.raises(BadInput, match=r"data.caption_column: 'caption': .*captions_train2017.json as COCO writes it"):
        found(COCO | {"annotations/captions_train2017.json": content}, **CAPTION)
