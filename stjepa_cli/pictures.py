"""Pictures of results as files and bytes: the one place that knows Pillow."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from stjepa_cli.files import replacing

Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

INK: Colour = (30, 30, 30)
GRID: Colour = (225, 225, 225)
ABSENT: Colour = (245, 240, 230)  # a row without a video
LIGHT: Colour = (255, 255, 255)
DARK: Colour = (8, 48, 107)

MARGIN_PX = 16
MAX_NAME_LETTERS = 28
LEGEND_PX = 160


@dataclass(frozen=True)
class Layout:
    """Where the cells of a confusion matrix lie, in pixels.

    Attributes:
        num_classes: C.
        cell: side of a cell, with its line.
        left: of the first column.
        top: of the first row.
    """

    num_classes: int
    cell: int
    left: int
    top: int

    def box(self, row: int, column: int) -> tuple[int, int, int, int]:
        """Left, top, right, bottom of a cell without its lines, all inside."""
        x, y = self.left + column * self.cell, self.top + row * self.cell
        return x + 1, y + 1, x + self.cell - 1, y + self.cell - 1

    @property
    def side(self) -> int:
        """Side of the whole matrix."""
        return self.num_classes * self.cell

    @property
    def shows_counts(self) -> bool:
        """Whether a number fits into a cell."""
        return self.cell >= 24


def write_confusion(path: Path, counts: Tensor, classes: Sequence[str], *, title: str) -> Layout:
    """Draw a confusion matrix: rows are the truth, columns the prediction, colour the share of the row.

    Cells shrink with the number of classes; where they are large enough they hold their counts.

    Args:
        path: the PNG file.
        counts: int64 (C, C), videos of class `row` that were taken for class `column`.
        classes: C names.
        title: one line.

    Returns:
        where the cells lie.

    Raises:
        StjepaError: the file cannot be written.
    """
    names = [name if len(name) <= MAX_NAME_LETTERS else name[: MAX_NAME_LETTERS - 1] + "…" for name in classes]
    cell = max(12, min(56, 900 // len(names)))
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


def encode_picture(pixels: Tensor, kind: str) -> bytes:
    """The bytes of a picture file.

    Args:
        pixels: uint8 (3, H, W), RGB.
        kind: `PNG`, small for what is made of few colours, or `JPEG` for frames.
    """
    buffer = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(buffer, format=kind, optimize=True, **_SETTINGS[kind])
    return buffer.getvalue()


_SETTINGS: dict[str, dict[str, int]] = {"PNG": {}, "JPEG": {"quality": 88}}


def shade(share: float) -> Colour:
    """The colour of a share, 0 to 1. Its root is taken, so that rare confusions can be seen beside a strong diagonal."""
    depth = math.sqrt(share)
    red, green, blue = (round(light + (dark - light) * depth) for light, dark in zip(LIGHT, DARK, strict=True))
    return red, green, blue


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
            share = count / total if total else 0.0
            draw.rectangle(box, shade(share) if total else ABSENT)
            if count and layout.shows_counts:
                centre = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
                draw.text(centre, str(count), LIGHT if share > 0.25 else INK, font, anchor="mm")


def _draw_names(image: Image.Image, layout: Layout, names: Sequence[str], font: Font) -> None:
    """Class names left of the rows and, turned, below the columns, with the names of both axes."""
    draw = ImageDraw.Draw(image)
    bottom = layout.top + layout.side
    for i, name in enumerate(names):
        middle = (i + 0.5) * layout.cell
        draw.text((layout.left - 6, layout.top + middle), name, INK, font, anchor="rm")
        turned = _turned(name, font)
        image.paste(turned, (int(layout.left + middle - turned.width / 2), bottom + 6))
    heading = _font(15)
    truth = _turned("truth", heading)
    image.paste(truth, (MARGIN_PX, layout.top + (layout.side - truth.height) // 2))
    draw.text((layout.left + layout.side / 2, image.height - MARGIN_PX), "prediction", INK, heading, anchor="md")


def _turned(text: str, font: Font) -> Image.Image:
    """Text that reads upwards, in a picture as narrow as it."""
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
    draw.text((x + 36 + LEGEND_PX, y + 7), "100 % of the videos of the row", INK, font, anchor="lm")
