"""The sizes of pictures, and every pixel of every image in its place."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from multiscale import pictures
from multiscale.pictures import GAP, PAPER


def images(count: int, resolution: int, first: int = 10) -> torch.Tensor:
    """Red images, unlike any text: one tone each (first, first + 1, ...), the upper right pixel brighter by 100."""
    pixels = torch.zeros(count, 3, resolution, resolution, dtype=torch.uint8)
    pixels[:, 0] = torch.arange(first, first + count).view(-1, 1, 1)
    pixels[:, 0, 0, -1] += 100
    return pixels


def box(picture, tone: int) -> tuple[int, int, int, int]:
    """The bounding box of a red tone: left, top, width, height."""
    rows, columns = np.nonzero((np.asarray(picture) == (tone, 0, 0)).all(2))
    edges = columns.min(), rows.min(), columns.max() - columns.min() + 1, rows.max() - rows.min() + 1
    return tuple(int(x) for x in edges)


@pytest.mark.parametrize("resolution, zoom", [(8, 8), (32, 2), (64, 1), (100, 1)])
def test_a_grid_holds_every_image_in_its_row_and_column(resolution, zoom):
    sheet = pictures.grid(images(5, resolution), 3, ["a", "b", "c"], "title")
    step = resolution * zoom + GAP
    assert sheet.mode == "RGB" and sheet.width == 3 * step + GAP
    top = sheet.height - 2 * step  # five images in three columns are two rows
    assert 30 < top < 80
    for k in range(5):
        left, upper = GAP + k % 3 * step, top + k // 3 * step
        assert box(sheet, 10 + k) == (left, upper, resolution * zoom, resolution * zoom)
        assert box(sheet, 110 + k) == (left + (resolution - 1) * zoom, upper, zoom, zoom)
    assert sheet.getpixel((GAP + 2 * step + 1, top + step + 1)) == PAPER, "the sixth place is empty"


def test_grey_images_look_like_their_rgb_copies():
    grey = torch.arange(4 * 64).to(torch.uint8).view(4, 1, 8, 8)
    ours, theirs = (pictures.grid(pixels, 2, [], "title") for pixels in (grey, grey.repeat(1, 3, 1, 1)))
    assert np.array_equal(ours, theirs)


def test_a_grid_shows_colours_as_they_are():
    pixels = torch.tensor([255, 128, 0], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 16, 16)
    sheet = pictures.grid(pixels, 1, [], "")
    assert sheet.getpixel((GAP + 5, sheet.height - GAP - 5)) == (255, 128, 0)


def test_a_grid_has_its_title_and_a_heading_over_each_column():
    def ink(title: str, headings: list[str]) -> np.ndarray:
        sheet = np.asarray(pictures.grid(images(4, 32), 2, headings, title).convert("L"))
        return sheet[:52] < 200

    assert not ink("", []).any()
    assert ink("some title", [])[:26].any() and not ink("some title", [])[30:].any()
    first, second = ink("", ["one"]), ink("", ["one", "two"])
    assert first[30:, :68].any() and not first[:, 72:].any()
    assert second[30:, 72:].any()


@pytest.mark.parametrize("full, zoom", [(32, 3), (96, 1), (128, 1)])
def test_a_strip_shows_steps_from_left_to_right_and_smaller_frames_smaller(full, zoom):
    resolutions = [full // 2, full * 3 // 4, full]
    frames = [
        (f"{resolution} px", images(2, resolution, 10 + 20 * column)) for column, resolution in enumerate(resolutions)
    ]
    sheet = pictures.strip(frames, "title")
    step = full * zoom + GAP
    assert sheet.width == 3 * step + GAP
    tops = [box(sheet, 50 + row)[1] for row in range(2)]  # of the full frames
    assert 20 < tops[0] < 60 and tops[1] == tops[0] + step
    for column, resolution in enumerate(resolutions):
        inset = (full - resolution) * zoom // 2  # a smaller frame lies in the middle of its place
        for row in range(2):
            left, upper = GAP + column * step + inset, tops[row] + inset
            assert box(sheet, 10 + 20 * column + row) == (left, upper, resolution * zoom, resolution * zoom)
            assert box(sheet, 110 + 20 * column + row) == (left + (resolution - 1) * zoom, upper, zoom, zoom)
    below = np.asarray(sheet.convert("L"))[tops[1] + full * zoom :]
    for column in range(3):
        assert (below[:, GAP + column * step : (column + 1) * step] < 200).any(), "a caption under each"


def test_captions_wider_than_their_pictures_do_not_touch():
    frames = [(caption, torch.full((1, 1, 64, 64), 255, dtype=torch.uint8)) for caption in ("M" * 20, "M" * 20)]
    line = np.asarray(pictures.strip(frames, "").convert("L"))[-22:]
    inked = (line < 200).any(0).nonzero()[0]
    assert np.diff(inked).max() > 2 * GAP, "there is paper between the two"


def test_a_title_and_headings_are_never_cut():
    """A column is as wide as its heading, and a sheet as its title; images stand in the middle of their columns."""
    one = images(2, 64)
    title = np.asarray(pictures.grid(one, 2, [], "M" * 60).convert("L"))
    assert title.shape[1] > 60 * 10 and (title[:26, -3:] == 255).all() and (title[:26, -40:] < 200).any()
    sheet = pictures.grid(one, 2, ["M" * 20, "M" * 20], "")
    left, right = box(sheet, 10), box(sheet, 11)
    heads = (np.asarray(sheet.convert("L"))[30:52] < 200).any(0).nonzero()[0]
    gap = np.diff(heads).argmax()
    assert np.diff(heads)[gap] > GAP, "there is paper between the two"
    for picture, (first, last) in zip((left, right), ((heads[0], heads[gap]), (heads[gap + 1], heads[-1]))):
        assert abs((first + last) / 2 - (picture[0] + 32)) <= 1.5


def test_a_very_long_name_is_shortened():
    short, long = (pictures.grid(images(1, 64), 1, ["M" * count], "") for count in (24, 200))
    assert abs(long.width - short.width) < 20


def tones(picture, count: int) -> list[tuple[int, int]]:
    """The places (row, column) of the red tones 10, 11, ... of images of 64 pixels in a grid."""
    return [(round((box(picture, 10 + k)[1] - 52) / 68), round(box(picture, 10 + k)[0] / 68)) for k in range(count)]


def test_few_classes_fill_several_columns_each():
    labels = torch.arange(16) % 2
    sheet = pictures.of_classes(images(16, 64), labels, 2, 10, "", ["a", "b"])
    # Eight images of a class at two rows are four columns: class 0 on the left, class 1 on the right.
    assert tones(sheet, 16) == [(k // 2 // 4, k % 2 * 4 + k // 2 % 4) for k in range(16)]
    inked = (np.asarray(sheet.convert("L"))[30:52] < 200).any(0).nonzero()[0]
    first, second = inked[inked < 272], inked[inked >= 272]  # a name once, over the middle of its columns
    assert abs(first.mean() - (GAP + 134)) < 3 and abs(second.mean() - (GAP + 272 + 134)) < 3


def test_of_many_classes_with_few_images_none_is_left_out_for_lack_of_columns():
    labels = torch.tensor([3, 2, 1, 0, 5, 4, 7, 6])
    sheet = pictures.of_classes(images(8, 64), labels, 2, 4, "")
    order = labels.argsort().argsort().tolist()
    assert tones(sheet, 8) == [divmod(place, 4) for place in order]


@pytest.mark.parametrize("count, columns", [(60, 10), (24, 7), (3, 3), (1, 1)])
def test_few_images_without_classes_make_a_smaller_grid(count, columns):
    sheet = pictures.of_classes(images(count, 64), None, 6, 10, "")
    assert sheet.width == columns * 68 + GAP and sheet.height == 52 + -(-count // columns) * 68


@pytest.mark.parametrize("names", [[], ["boot", "shoe"]])
def test_a_strip_has_the_names_of_its_rows_on_the_left(names):
    sheet = pictures.strip([("32 px", images(2, 96))], "", names)
    margin = box(sheet, 10)[0]
    inked = (np.asarray(sheet.convert("L"))[34:-30, : margin - 1] < 200).any(1)
    assert margin == GAP if not names else margin > 20 and inked[:100].any() and inked[100:].any()


def test_a_name_stands_in_the_middle_of_the_rows_of_its_image():
    """SSD shows an image in two rows: what the network predicts stands under the state."""
    sheet = pictures.strip([("32 px", images(4, 96))], "", ["boot", "shoe"])
    inked = (np.asarray(sheet.convert("L"))[34:-30, : box(sheet, 10)[0] - 1] < 200).any(1).nonzero()[0]
    first, second = inked[inked < 200], inked[inked >= 200]
    for rows, middle in ((first, 98), (second, 298)):
        assert abs(rows.mean() - middle) < 10


def test_the_names_of_classes_stand_over_their_columns():
    pixels, labels = images(4, 64), torch.arange(4) % 2
    named, numbered, swapped = (
        np.asarray(pictures.of_classes(pixels, labels, 2, 2, "", names))[30:52]
        for names in (["boot", "shoe"], [], ["shoe", "boot"])
    )
    assert not np.array_equal(named, numbered)
    assert np.array_equal(named[:, 4:68], swapped[:, 72:136]) and np.array_equal(named[:, 72:136], swapped[:, 4:68])


def test_a_caption_stands_under_its_image_whole():
    """Five images in three columns: 96 pixels each, and the second row below the longest caption of the first."""
    short, long = "two ones", "an eight to the left of a seven, and above it a three"
    captions = [short, long, "", short, short]
    sheet = pictures.captioned(images(5, 32), captions, 3, "title")
    assert sheet.width == 3 * (96 + 2 * GAP) + GAP
    places = [box(sheet, 10 + k) for k in range(5)]
    assert [place[0] for place in places[:3]] == [GAP + k * (96 + 2 * GAP) for k in range(3)]
    assert all(place[2:] == (96, 96) for place in places)
    assert {place[1] for place in places[:3]} == {34} and len({place[1] for place in places[3:]}) == 1
    ink = (np.asarray(sheet.convert("L")) < 200) & (np.asarray(sheet).max(2) - np.asarray(sheet).min(2) < 10)
    lower = places[3][1]

    def inked(column: int, top: int, bottom: int) -> int:
        left = GAP + column * (96 + 2 * GAP)
        assert not ink[top:bottom, left - GAP : left - 1].any(), "a caption reaches over its image"
        return int(ink[top:bottom, left : left + 96].any(1).nonzero()[0].max(initial=-1)) + 1

    heights = [inked(column, 34 + 96, lower) for column in range(3)]
    assert 0 < heights[0] < 20 < 40 < heights[1] <= lower - 34 - 96 and heights[2] == 0
    assert 0 < inked(0, lower + 96, sheet.height) == heights[0]


def test_a_text_is_wrapped_between_words_and_none_is_lost():
    assert pictures._wrapped("two ones", 200, 12) == ["two ones"] and pictures._wrapped("", 50, 12) == [""]
    lines = pictures._wrapped("a four to the left of a nine", 60, 12)
    assert " ".join(lines) == "a four to the left of a nine" and len(lines) > 2
    assert all(pictures._width(line, 12) <= 60 for line in lines)
    assert pictures._wrapped("a " + "w" * 40, 60, 12) == ["a", "w" * 40]
