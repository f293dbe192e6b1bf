"""Image files: confusion matrices, contact sheets, and the encoding of frames. The only module that uses Pillow."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from stjepa_cli.core.files import replacing

Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

INK: Colour = (30, 30, 30)
GRID: Colour = (225, 225, 225)
ABSENT: Colour = (245, 240, 230)  # a row without a video
LIGHT: Colour = (255, 255, 255)
DARK: Colour = (8, 48, 107)

RIGHT: Colour = (21, 128, 61)
WRONG: Colour = (194, 65, 12)

MARGIN_PX = 16
GAP_PX = 6
LINE_PX = 17
MAX_NAME_LETTERS = 28
NAME_PX = 11  # height that a class name needs
MATRIX_PX = 2400  # side of a matrix with so many classes that only some are named
LEGEND_PX = 160


@dataclass(frozen=True)
class Layout:
    """Position of the cells of a confusion matrix, in pixels.

    Attributes:
        num_classes: Number of classes, C.
        cell: Side of a cell, with its line.
        left: Left edge of the first column.
        top: Top edge of the first row.
    """

    num_classes: int
    cell: int
    left: int
    top: int

    def box(self, row: int, column: int) -> tuple[int, int, int, int]:
        """Return left, top, right and bottom of a cell without its lines, all inclusive."""
        x, y = self.left + column * self.cell, self.top + row * self.cell
        return x + 1, y + 1, x + self.cell - 1, y + self.cell - 1

    @property
    def side(self) -> int:
        """Side of the whole matrix."""
        return self.num_classes * self.cell

    @property
    def shows_counts(self) -> bool:
        """True if a number fits into a cell."""
        return self.cell >= 24


@dataclass(frozen=True)
class Tile:
    """A picture on a contact sheet.

    Attributes:
        pixels: Tensor uint8 (3, S, S), or None if the picture is not available.
        words: Lines below the picture.
        right: Whether the answer shown is right, which decides the frame; None if the tile is not an answer.
    """

    pixels: Tensor | None
    words: tuple[str, ...] = ()
    right: bool | None = None


@dataclass(frozen=True)
class Sheet:
    """A row of pictures.

    Attributes:
        lines: Lines above the pictures.
        tiles: Pictures, all of one size.
    """

    lines: tuple[str, ...]
    tiles: tuple[Tile, ...]


def write_confusion(path: Path, counts: Tensor, classes: Sequence[str], *, title: str) -> Layout:
    """Draw a confusion matrix: rows are the truth, columns the prediction, colour the fraction of the row.

    Cells shrink as the number of classes grows. Large cells show their counts; if cells are too small for names, only every n-th
    class is named.

    Args:
        path: PNG file to write.
        counts: Tensor int64 (C, C): number of videos of class `row` that were classified as class `column`.
        classes: Names of the C classes.
        title: Title, one line.

    Returns:
        The position of the cells.

    Raises:
        StjepaError: The file cannot be written.
    """
    names = [name if len(name) <= MAX_NAME_LETTERS else name[: MAX_NAME_LETTERS - 1] + "…" for name in map(_one_line, classes)]
    title = _one_line(title)
    cell = max(12, min(56, 900 // len(names))) if len(names) <= 200 else max(2, MATRIX_PX // len(names))
    font, heading = _font(max(10, min(15, cell - 2))), _font(17)
    label_px = max(int(font.getlength(name)) for name in names) + 8
    layout = Layout(len(names), cell, MARGIN_PX + 24 + label_px, MARGIN_PX + 62)
    width = max(layout.left + layout.side, int(MARGIN_PX + heading.getlength(title)), layout.left + LEGEND_PX + 260) + MARGIN_PX
    image = Image.new("RGB", (width, layout.top + layout.side + label_px + 24 + MARGIN_PX), LIGHT)
    draw = ImageDraw.Draw(image)
    draw.text((MARGIN_PX, MARGIN_PX), title, INK, heading)
    _draw_legend(draw, layout.left, MARGIN_PX + 32)
    _draw_cells(draw, layout, counts)
    _draw_names(image, layout, names, font)
    with replacing(path) as part:
        image.save(part, format="PNG")
    return layout


def write_sheets(path: Path, title: str, sheets: Sequence[Sheet], *, tile_px: int) -> None:
    """Draw rows of pictures below each other; a right answer has a solid frame, a wrong one a dashed frame.

    Args:
        path: JPEG file to write.
        title: Title, one line.
        sheets: Rows of pictures.
        tile_px: Side of a picture in pixels.

    Raises:
        StjepaError: The file cannot be written.
    """
    heights = [_sheet_height(sheet, tile_px) for sheet in sheets]
    widest = max(len(sheet.tiles) for sheet in sheets)
    width = max(2 * MARGIN_PX + widest * (tile_px + GAP_PX) - GAP_PX, 640)
    image = Image.new("RGB", (width, 2 * MARGIN_PX + 34 + sum(heights)), LIGHT)
    draw = ImageDraw.Draw(image)
    draw.text((MARGIN_PX, MARGIN_PX), _fitting(title, _font(17), width - 2 * MARGIN_PX), INK, _font(17))
    y = MARGIN_PX + 34
    for sheet, height in zip(sheets, heights, strict=True):
        _draw_sheet(image, sheet, y, tile_px)
        y += height
    with replacing(path) as part:
        image.save(part, format="JPEG", **_SETTINGS["JPEG"])


def encode_picture(pixels: Tensor, kind: str) -> bytes:
    """Encode a picture.

    Args:
        pixels: Tensor uint8 (3, H, W), RGB.
        kind: `PNG` for pictures of few colours, `JPEG` for frames, `WEBP` for small frames of which a page holds many.

    Returns:
        The bytes of the image file.
    """
    buffer = io.BytesIO()
    _image(pixels).save(buffer, format=kind, optimize=True, **_SETTINGS[kind])
    return buffer.getvalue()


def encode_animation(frames: Tensor, *, frame_ms: int, last_ms: int) -> bytes:
    """Encode an animation that repeats for ever, as WebP.

    Args:
        frames: Tensor uint8 (T, 3, H, W), RGB.
        frame_ms: Time that each frame is shown.
        last_ms: Time that the last frame is shown.

    Returns:
        The bytes of the image file.
    """
    first, *others = [_image(frame) for frame in frames]
    durations = [frame_ms] * len(others) + [last_ms]
    buffer = io.BytesIO()
    first.save(buffer, format="WEBP", save_all=True, append_images=others, duration=durations, loop=0, quality=80, method=4)
    return buffer.getvalue()


_SETTINGS: dict[str, dict[str, int]] = {"PNG": {}, "JPEG": {"quality": 88}, "WEBP": {"quality": 60, "method": 4}}


def shade(fraction: float) -> Colour:
    """Return the colour of a fraction, 0 to 1, on a square-root scale: rare confusions stay visible beside a strong diagonal."""
    depth = math.sqrt(fraction)
    red, green, blue = (round(light + (dark - light) * depth) for light, dark in zip(LIGHT, DARK, strict=True))
    return red, green, blue


def _one_line(text: str) -> str:
    """Return text that Pillow can measure and draw."""
    return " ".join(text.encode("utf-8", "replace").decode().split())


def _fitting(text: str, font: Font, width: float) -> str:
    """Cut a line to a width in pixels."""
    text = _one_line(text)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def _sheet_height(sheet: Sheet, tile_px: int) -> int:
    lines = max((len(tile.words) for tile in sheet.tiles), default=0)
    return LINE_PX * (len(sheet.lines) + lines) + (tile_px + 2 * GAP_PX if sheet.tiles else 0) + MARGIN_PX


def _draw_sheet(image: Image.Image, sheet: Sheet, y: int, tile_px: int) -> None:
    draw, font = ImageDraw.Draw(image), _font(13)
    for line in sheet.lines:
        draw.text((MARGIN_PX, y), _fitting(line, font, image.width - 2 * MARGIN_PX), INK, font)
        y += LINE_PX
    y += GAP_PX
    for i, tile in enumerate(sheet.tiles):
        x = MARGIN_PX + i * (tile_px + GAP_PX)
        if tile.pixels is None:
            draw.rectangle((x, y, x + tile_px - 1, y + tile_px - 1), ABSENT, GRID)
            draw.text((x + tile_px / 2, y + tile_px / 2), "no picture", INK, font, anchor="mm")
        else:
            image.paste(_image(tile.pixels), (x, y))
        if tile.right is not None:
            _draw_frame(draw, x, y, tile_px, tile.right)
        for k, word in enumerate(tile.words):
            draw.text((x, y + tile_px + GAP_PX + k * LINE_PX), _fitting(word, font, tile_px), INK, font)


def _draw_frame(draw: ImageDraw.ImageDraw, x: int, y: int, side: int, right: bool) -> None:
    """Draw a frame around a picture, solid or dashed, so that it can be told without seeing colours."""
    if right:
        draw.rectangle((x, y, x + side - 1, y + side - 1), outline=RIGHT, width=4)
        return
    for start in range(0, side, 16):
        end = min(start + 9, side - 1)
        for edge in (0, side - 4):
            draw.rectangle((x + start, y + edge, x + end, y + edge + 3), WRONG)
            draw.rectangle((x + edge, y + start, x + edge + 3, y + end), WRONG)


def _image(pixels: Tensor) -> Image.Image:
    """Turn a tensor uint8 (3, H, W) into a Pillow image."""
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def _font(size_px: int) -> Font:
    return ImageFont.load_default(size_px)


def _draw_cells(draw: ImageDraw.ImageDraw, layout: Layout, counts: Tensor) -> None:
    end_x, end_y = layout.left + layout.side, layout.top + layout.side
    draw.rectangle((layout.left, layout.top, end_x, end_y), GRID)
    font = _font(max(10, int(layout.cell * 0.36)))
    for row, values in enumerate(counts.tolist()):
        total = sum(values)
        for column, count in enumerate(values):
            box = layout.box(row, column)
            fraction = count / total if total else 0.0
            draw.rectangle(box, shade(fraction) if total else ABSENT)
            if count and layout.shows_counts:
                centre = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
                draw.text(centre, str(count), LIGHT if fraction > 0.25 else INK, font, anchor="mm")


def _draw_names(image: Image.Image, layout: Layout, names: Sequence[str], font: Font) -> None:
    """Draw the class names beside the rows and, rotated, below the columns, and the names of both axes."""
    draw = ImageDraw.Draw(image)
    bottom = layout.top + layout.side
    every = -(-NAME_PX // layout.cell)
    for i, name in list(enumerate(names))[::every]:
        middle = (i + 0.5) * layout.cell
        draw.text((layout.left - 6, layout.top + middle), name, INK, font, anchor="rm")
        turned = _turned(name, font)
        image.paste(turned, (int(layout.left + middle - turned.width / 2), bottom + 6))
    heading = _font(15)
    truth = _turned("truth", heading)
    image.paste(truth, (MARGIN_PX, layout.top + (layout.side - truth.height) // 2))
    draw.text((layout.left + layout.side / 2, image.height - MARGIN_PX), "prediction", INK, heading, anchor="md")


def _turned(text: str, font: Font) -> Image.Image:
    """Draw text that reads upwards, in an image just large enough for it."""
    left, top, right, bottom = font.getbbox(text)
    picture = Image.new("RGB", (int(right - left) + 2, int(bottom - top) + 2), LIGHT)
    ImageDraw.Draw(picture).text((1 - left, 1 - top), text, INK, font)
    return picture.rotate(90, expand=True)


def _draw_legend(draw: ImageDraw.ImageDraw, x: int, y: int) -> None:
    font = _font(12)
    for i in range(LEGEND_PX):
        draw.line((x + 30 + i, y, x + 30 + i, y + 14), shade(i / (LEGEND_PX - 1)))
    draw.rectangle((x + 29, y - 1, x + 30 + LEGEND_PX, y + 15), outline=GRID)
    draw.text((x + 24, y + 7), "0 %", INK, font, anchor="rm")
    draw.text((x + 36 + LEGEND_PX, y + 7), "100 % of the row's videos", INK, font, anchor="lm")
