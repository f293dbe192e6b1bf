"""Confusion matrices and sheets of frames as pictures: what colour lies where."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from stjepa_cli.core.errors import StjepaError
from stjepa_cli.viz.images import ABSENT, DARK, LIGHT, MARGIN_PX, Sheet, Tile, shade, write_confusion, write_sheets


def test_cells_have_the_colour_of_their_share_of_the_row(tmp_path: Path) -> None:
    counts = torch.tensor([[3, 1, 0], [0, 8, 0], [0, 0, 0]])
    layout = write_confusion(tmp_path / "new" / "c.png", counts, ("left", "right", "up"), title="three")
    with Image.open(tmp_path / "new" / "c.png") as picture:
        pixels = picture.convert("RGB")

    def corner(row: int, column: int) -> tuple[int, int, int]:
        left, top, _, _ = layout.box(row, column)
        return pixels.getpixel((left + 1, top + 1))  # type: ignore[return-value]

    assert [corner(0, c) for c in range(3)] == [shade(0.75), shade(0.25), LIGHT]
    assert [corner(1, c) for c in range(3)] == [LIGHT, DARK, LIGHT]
    assert {corner(2, c) for c in range(3)} == {ABSENT}


@pytest.mark.parametrize("num_classes", [1, 6, 101, 300])
def test_every_number_of_classes_fits(tmp_path: Path, num_classes: int) -> None:
    names = [f"AnExceedinglyLongClassNameOfNumber{i}" if i % 2 else f"c{i}" for i in range(num_classes)]
    path = tmp_path / "c.png"
    layout = write_confusion(path, torch.eye(num_classes, dtype=torch.int64) * 37, names, title="a title " * 8)
    with Image.open(path) as picture:
        assert layout.left + layout.side < picture.width < 2900
        assert layout.top + layout.side < picture.height < 2900
    assert layout.shows_counts == (num_classes <= 37)


def test_shades_deepen_from_white_to_blue() -> None:
    shades = [shade(i / 10) for i in range(11)]
    assert (shades[0], shades[-1]) == (LIGHT, DARK)
    assert [sum(colour) for colour in shades] == sorted((sum(colour) for colour in shades), reverse=True)


def test_a_place_that_cannot_be_written_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "c.png").mkdir()
    with pytest.raises(StjepaError, match=r"cannot write .*: the path is a folder"):
        write_confusion(tmp_path / "c.png", torch.ones(2, 2, dtype=torch.int64), ("a", "b"), title="")
    assert [path.name for path in tmp_path.iterdir()] == ["c.png"]


def grey(level: int) -> torch.Tensor:
    return torch.full((3, 40, 40), level, dtype=torch.uint8)


def test_sheets_have_their_pictures_in_rows_and_answers_in_frames(tmp_path: Path) -> None:
    path = tmp_path / "new" / "sheets.jpg"
    tiles = (Tile(grey(100), ("asks",)), Tile(grey(150), ("yes",), True), Tile(grey(200), ("no",), False), Tile(None, ("gone",)))
    write_sheets(path, "a title " * 40, [Sheet(("one\nline", "é" * 300), tiles), Sheet(("nothing to show",), ())], tile_px=40)
    with Image.open(path) as picture:
        flat = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8)
        pixels = flat.view(picture.height, picture.width, 3).int()
    top = MARGIN_PX + 34 + 2 * 17 + 6
    lefts = [MARGIN_PX + i * 46 for i in range(4)]
    for left, level in zip(lefts, (100, 150, 200), strict=False):
        assert (pixels[top + 17 : top + 23, left + 17 : left + 23] - level).abs().max() < 25
    right, wrong = (pixels[top + 1, left : left + 40].float() for left in lefts[1:3])
    assert ((right[:, 1] - right[:, 0]) > 50).all(), "a solid line"
    gaps = (wrong[:, 0] - wrong[:, 2]) < 50
    assert 5 < int(gaps.sum()) < 30, "a broken line"


def test_a_sheet_without_any_picture_is_words(tmp_path: Path) -> None:
    write_sheets(tmp_path / "s.jpg", "words", [Sheet(("it cannot be shown",), ())], tile_px=128)
    with Image.open(tmp_path / "s.jpg") as picture:
        assert picture.width >= 640


def test_names_of_several_lines_and_no_text_are_drawn_on_one(tmp_path: Path) -> None:
    write_confusion(tmp_path / "c.png", torch.ones(2, 2, dtype=torch.int64), ("two\nlines", "\udcff"), title="odd\ntitle")
    with Image.open(tmp_path / "c.png") as picture:
        picture.verify()
