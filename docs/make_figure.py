"""Draw the pictures of the README and of the guides from the folder of a finished demo.

    stjepa demo
    python docs/make_figure.py demo

It writes `docs/images/overview.png` (clips, their teacher's and student's tokens as colours, the loss) and
`docs/images/demo_loss.svg`. The clips are drawn and encoded again, so the demo need not have been run with `--keep`.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from stjepa_cli.core.types import ClipSpec
from stjepa_cli.data.video import encode_video, read_clip
from stjepa_cli.demo.motions import SCENES
from stjepa_cli.demo.run import TEACHER
from stjepa_cli.demo.scenes import draw_clips
from stjepa_cli.demo.synthetic import FPS
from stjepa_cli.models.checkpoint import newest_checkpoint
from stjepa_cli.models.student import load_student
from stjepa_cli.teachers.base import open_teacher
from stjepa_cli.training.feature_maps import as_colours, blocks, principal_components
from stjepa_cli.viz.curves import loss_chart, read_metrics

IMAGES = Path(__file__).parent / "images"

NUM_CLIPS = 256  # the principal components are those of so many clips, of which a few are shown
SEED = 11
SHOWN = ("MoveRight", "MoveUp", "Grow")
CLIPS_EACH = 2

SCALE = 2  # pixels of the file per unit of the layout, for sharp screens
TILE, GAP, LABEL, MARGIN = 42, 10, 96, 14
CURVE_HEIGHT = 150
INK, PALE, LIGHT = (31, 35, 40), (208, 215, 222), (255, 255, 255)
TERMS = {"hidden": "hidden tokens", "visible": "visible tokens", "dense": "all tokens"}
COLOURS = ((9, 105, 218), (207, 34, 46), (26, 127, 55), (191, 135, 0), (110, 64, 201), (90, 100, 110))
CONSTANT = (130, 80, 30)


def main() -> None:
    """Draw both pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("demo", type=Path, nargs="?", default=Path("demo"), help="Folder of a finished demo.")
    folder = parser.parse_args().demo / "checkpoints"
    curves, _ = read_metrics(folder / "metrics.jsonl")
    IMAGES.mkdir(exist_ok=True)
    (IMAGES / "demo_loss.svg").write_text(loss_chart(curves) + "\n")
    _draw(_rows(newest_checkpoint(folder)), curves).quantize(256, dither=Image.Dither.NONE).save(IMAGES / "overview.png", optimize=True)


def _rows(checkpoint: Path) -> dict[str, list[Tensor]]:
    """Return the rows of pictures by their labels: for every clip shown, uint8 (t, 3, S, S)."""
    student, _ = load_student(checkpoint, torch.device("cpu"))
    teacher = open_teacher(str(files("stjepa_cli") / "demo" / "assets" / TEACHER))
    frames, labels = draw_clips(NUM_CLIPS, SEED, "unseen")
    clips = _through_files(frames, student.spec)
    with torch.inference_mode():
        targets = as_colours(principal_components(teacher.encode(clips))[0])
        answers = _matched(as_colours(principal_components(student(clips))[0]), targets)
    motions = [motion.name for motion in SCENES["8"].motions]
    shown = [int(i) for name in SHOWN for i in (labels == motions.index(name)).nonzero()[:CLIPS_EACH]]
    return {
        "video": [clips[i][:: student.spec.tubelet] for i in shown],
        "teacher": [blocks(targets[i], student.spec) for i in shown],
        "student": [blocks(answers[i], student.spec) for i in shown],
    }


def _through_files(frames: Tensor, spec: ClipSpec) -> Tensor:
    """Return clips (B, T, 3, S, S) as they are read from video files, which is how every command sees them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.webm"
        clips = []
        for clip in frames:
            encode_video(path, clip, fps=FPS)
            clips.append(read_clip(path, spec).pixels)
    return torch.stack(clips)


def _matched(colours: Tensor, wanted: Tensor) -> Tensor:
    """Return `colours` with the order and the signs of their components chosen to resemble `wanted`: both are arbitrary."""
    flat, goal = colours.double().flatten(0, 1), wanted.double().flatten(0, 1)
    cosines = torch.corrcoef(torch.cat([flat, goal], dim=1).T)[:3, 3:]
    best = max(itertools.permutations(range(3)), key=lambda order: sum(abs(cosines[i, k]) for k, i in enumerate(order)))
    signs = torch.tensor([bool(cosines[i, k] < 0) for k, i in enumerate(best)])
    chosen = colours[..., list(best)]
    return torch.where(signs, 255 - chosen, chosen)


def _draw(rows: Mapping[str, Sequence[Tensor]], curves: Mapping[str, tuple[tuple[int, float], ...]]) -> Image.Image:
    first = next(iter(rows.values()))
    steps = len(first[0])
    width = 2 * MARGIN + LABEL + len(first) * (steps * TILE + GAP) - GAP
    top = MARGIN + 24
    height = top + len(rows) * (TILE + 6) + 58 + CURVE_HEIGHT + 34
    image = Image.new("RGB", (width * SCALE, height * SCALE), LIGHT)
    pen = _Pen(image)
    for column, clip in enumerate(first):
        left = MARGIN + LABEL + column * (len(clip) * TILE + GAP)
        pen.text(left, MARGIN + 8, SHOWN[column // CLIPS_EACH].replace("Move", "moves ").lower().replace("grow", "grows"))
    for row, (label, clips) in enumerate(rows.items()):
        y = top + row * (TILE + 6)
        pen.text(MARGIN, y + TILE / 2, label)
        for column, clip in enumerate(clips):
            for step, picture in enumerate(clip):
                pen.picture(MARGIN + LABEL + column * (len(clip) * TILE + GAP) + step * TILE, y, picture)
    y = top + len(rows) * (TILE + 6) + 10
    words = "Colours: the first three principal components of the tokens. Tokens of the same colour look alike to the model."
    pen.text(MARGIN + LABEL, y, words)
    _draw_curves(pen, curves, MARGIN + LABEL, y + 44, width - 2 * MARGIN - LABEL)
    return image


def _draw_curves(pen: _Pen, curves: Mapping[str, tuple[tuple[int, float], ...]], x: float, y: float, width: float) -> None:
    shown = _series(curves)
    values = [value for points in shown.values() for _, value in points]
    low, high = min(values), max(values)
    last = max(points[-1][0] for points in shown.values())

    def place(step: float, value: float) -> tuple[float, float]:
        return x + width * step / last, y + CURVE_HEIGHT * (high - value) / (high - low)

    pen.text(MARGIN, y - 16, "pretraining")
    for tick in (0.1 * k for k in range(1 + int(10 * low), 1 + int(10 * high))):
        pen.line([place(0, tick), place(last, tick)], PALE, 1)
        pen.text(x - 6, place(0, tick)[1], f"{tick:.1f}", anchor="rm")
    colours = dict(zip(shown, (CONSTANT, *COLOURS), strict=False))
    for name, points in shown.items():
        pen.line([place(*point) for point in points], colours[name], 2)
    pen.text(x, y + CURVE_HEIGHT + 14, "step 1")
    pen.text(x + width, y + CURVE_HEIGHT + 14, f"step {last:,}", anchor="rm")
    left = x
    for name in shown:
        pen.line([(left, y - 16), (left + 18, y - 16)], colours[name], 3)
        left = pen.text(left + 24, y - 16, name) + 24


def _series(curves: Mapping[str, tuple[tuple[int, float], ...]]) -> dict[str, list[tuple[int, float]]]:
    """Return the curves to draw by what they show: each term of the loss, and the answer that needs no look at the clip."""
    found = {"one constant answer": curves["constant_loss"]}
    for name, words in TERMS.items():
        found |= {f"loss on {words}": curves.get(name, ()), f"{words} of held-out clips": curves.get(f"val_{name}", ())}
    if not any(name in curves for name in TERMS):
        found |= {"loss": curves["loss"], "loss on held-out clips": curves.get("val_loss", ())}
    return {name: _smooth(points) for name, points in found.items() if points}


def _smooth(points: Sequence[tuple[int, float]], window: int = 40) -> list[tuple[int, float]]:
    """Return running means over a fortieth of the points, as the charts of `stjepa report` do."""
    size = max(1, len(points) // window)
    return [
        (points[i][0], sum(value for _, value in points[max(0, i - size + 1) : i + 1]) / min(size, i + 1))
        for i in range(0, len(points), max(1, size // 4))
    ]


class _Pen:
    """Draws in units of the layout on a picture that has SCALE times as many pixels."""

    def __init__(self, image: Image.Image) -> None:
        self.image, self.draw = image, ImageDraw.Draw(image)
        self.font = ImageFont.load_default(13 * SCALE)

    def text(self, x: float, y: float, words: str, *, anchor: str = "lm") -> float:
        """Write one line and return where it ends."""
        self.draw.text((x * SCALE, y * SCALE), words, INK, self.font, anchor=anchor)
        return x + self.font.getlength(words) / SCALE

    def line(self, points: Sequence[tuple[float, float]], colour: tuple[int, int, int], width: float) -> None:
        self.draw.line([(x * SCALE, y * SCALE) for x, y in points], colour, round(width * SCALE), joint="curve")

    def picture(self, x: float, y: float, pixels: Tensor) -> None:
        """Place uint8 (3, S, S) as a tile."""
        tile = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
        side = TILE * SCALE - 2
        self.image.paste(tile.resize((side, side), Image.Resampling.NEAREST), (round(x * SCALE), round(y * SCALE)))


if __name__ == "__main__":
    main()
