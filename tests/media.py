"""Write tiny real videos, including broken ones, and both data sets in their official layouts.

In every video, frame i carries the number i as a bar code, so that a test can ask which frame it was given.
"""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stjepa_cli.core.locations import Location
from stjepa_cli.data.video import encode_video

NUM_FRAMES = 14
HEIGHT, WIDTH = 48, 64
NUM_BITS = 6

MOTIONS = ("Moving [something] right", "Moving [something] left", "Pulling [something] [somewhere]")
"""Templates of the tiny Something-Something v2; the square of label k moves in direction k."""

UCF_CLASSES = ("ApplyEyeMakeup", "BabyCrawling", "HandstandPushups")
"""Classes of the tiny UCF-101. The lists write the last one's files with another case than the disk, as the real lists do."""

UCF_GROUPS = (1, 2, 3, 4)


# ------------------------------------------------------------------------------------------------------------ frames


def moving_square(*, num_frames: int = NUM_FRAMES, height: int = HEIGHT, width: int = WIDTH, direction: int = 0, seed: int = 0) -> Tensor:
    """Return frames uint8 (T, 3, height, width): a square moves right, left or down, below the number of the frame (0 to 63)."""
    side = min(height, width)
    size, left = side // 4, (width - side) // 2
    colours = torch.randint(30, 220, (2, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    frames = torch.empty(num_frames, 3, height, width, dtype=torch.uint8)
    frames[:] = colours[0][:, None, None]
    frames[:, :, : (height - side) // 2 + side // NUM_BITS] = 0
    for i in range(num_frames):
        time = i / max(1, num_frames - 1)
        x = left + int((time, 1 - time, 0.5)[direction] * (side - size))
        y = (height - side) // 2 + side // NUM_BITS + int((0.5, 0.5, time)[direction] * (side - side // NUM_BITS - size))
        frames[i, :, y : y + size, x : x + size] = 255 - colours[1][:, None, None]
        _draw_number(frames[i], i)
    return frames


def _draw_number(frame: Tensor, number: int) -> None:
    """Draw `number` as black and white bits along the top of the centre square of a frame (3, H, W)."""
    height, width = frame.shape[1:]
    side = min(height, width)
    top, left, cell = (height - side) // 2, (width - side) // 2, side // NUM_BITS
    for bit in range(NUM_BITS):
        frame[:, top : top + cell, left + bit * cell : left + (bit + 1) * cell] = 255 * (number >> bit & 1)


def frame_numbers(frames: Tensor) -> list[int]:
    """Read the numbers in the bar codes of frames (T, 3, H, W), or of clips cut from their centre square."""
    height, width = frames.shape[2:]
    side = min(height, width)
    top, left, cell = (height - side) / 2, (width - side) / 2, side / NUM_BITS
    centres = [int(left + (bit + 0.5) * cell) for bit in range(NUM_BITS)]
    lit = frames[:, :, int(top + cell / 2), centres].float().mean(dim=1) > 127  # (T, bits)
    return [sum(1 << bit for bit in range(NUM_BITS) if row[bit]) for row in lit]


# ------------------------------------------------------------------------------------------------------------- files


def write_video(path: Path, frames: Tensor | None = None, *, fps: float = 12.0) -> Path:
    """Encode frames (by default a moving square) to `path`, whose suffix names the format; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    encode_video(path, moving_square() if frames is None else frames, fps=fps)
    return path


def write_empty(path: Path) -> Path:
    """Write a file of zero bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return path


def write_text(path: Path, text: str = "this is not a video\n") -> Path:
    """Write a text file under a video's name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def truncate(path: Path, fraction: float = 0.6) -> Path:
    """Cut a file short, leaving a fraction of its bytes."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    return path


def ffmpeg(*arguments: object) -> None:
    """Run the ffmpeg program; skip the test where there is none."""
    if shutil.which("ffmpeg") is None:
        pytest.skip("the ffmpeg program makes this file and is not installed")
    subprocess.run(["ffmpeg", "-nostdin", "-y", "-v", "error", *map(str, arguments)], check=True, stdin=subprocess.DEVNULL, timeout=60)


def write_audio_only(path: Path) -> Path:
    """Write half a second of sound without a picture (needs the ffmpeg program)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ffmpeg("-f", "lavfi", "-i", "sine=duration=0.5", path)
    return path


def write_xvid(path: Path, frames: Tensor, *, fps: float = 25.0) -> Path:
    """Write an avi with B-frames and no presentation times, as in UCF-101 (needs the ffmpeg program)."""
    source = write_video(path.with_name(path.stem + "_source.mp4"), frames, fps=fps)
    ffmpeg("-i", source, "-c:v", "mpeg4", "-bf", "2", "-vtag", "XVID", "-b:v", "2M", path)
    source.unlink()
    return path


def turn_upright(path: Path) -> Path:
    """Set the display matrix of an mp4 so that players turn it a quarter clockwise, as telephones do for portrait videos."""
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 44  # behind version, times, track, duration, layer and volume
    one = 1 << 16
    data[matrix : matrix + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def upload(source: Path, target: Location) -> Location:
    """Copy a file or a whole folder to a URL."""
    for file in source.rglob("*") if source.is_dir() else [source]:
        if file.is_file():
            (target / file.relative_to(source).as_posix() if source.is_dir() else target).write_bytes(file.read_bytes())
    return target


# --------------------------------------------------------------------------------------------------------- data sets


def write_tiny_ssv2(
    root: Path,
    *,
    lists: str = "",
    videos: str = "20bn-something-something-v2",
    train: int = 12,
    validation: int = 4,
    test: int = 2,
) -> Path:
    """Write a tiny Something-Something v2: 3 classes of moving squares, webm, ids from 1; validation ids follow those of train.

    Args:
        root: Folder to make.
        lists: Folder of the JSON files below the root.
        videos: Folder of the videos below the root, empty for the root itself.
        train: Number of train videos; the label of the i-th is i % 3.
        validation: Number of validation videos, labelled in the same way.
        test: Number of test videos, without labels.
    """
    folder = root / lists
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "labels.json", {plain(template): str(k) for k, template in enumerate(MOTIONS)})
    first = 1
    for split, count in {"train": train, "validation": validation, "test": test}.items():
        entries = []
        for i in range(count):
            direction, video = i % len(MOTIONS), str(first + i)
            frames = moving_square(direction=direction, seed=first + i)
            write_video(root / videos / f"{video}.webm", frames)
            entries.append({"id": video} if split == "test" else ssv2_entry(video, MOTIONS[direction]))
        write_json(folder / f"{split}.json", entries)
        first += count
    return root


def ssv2_entry(video: str, template: str) -> dict[str, object]:
    """Return an entry of `train.json`."""
    fill = ["a cup" for _ in range(template.count("["))]
    label = plain(template).lower().replace("something", "a cup").replace("somewhere", "a cup")
    return {"id": video, "label": label, "template": template, "placeholders": fill}


def plain(template: str) -> str:
    """Return a template without its brackets, as in `labels.json`."""
    return template.replace("[", "").replace("]", "")


def write_tiny_ucf101(root: Path, *, lists: str = "ucfTrainTestlist", videos: str = "UCF-101", clips: int = 1) -> Path:
    """Write a tiny UCF-101: 3 classes x 4 groups x `clips` avi files; split s tests on group s and trains on the others.

    Args:
        root: Folder to make.
        lists: Folder of the CRLF lists below the root, empty for the root itself.
        videos: Folder of the class folders below the root, empty for the root itself.
        clips: Number of clips in each group.
    """
    (root / lists).mkdir(parents=True, exist_ok=True)
    write_crlf(root / lists / "classInd.txt", [f"{k} {name}" for k, name in enumerate(UCF_CLASSES, start=1)])
    for label, name in enumerate(UCF_CLASSES):
        for group in UCF_GROUPS:
            for clip in range(1, clips + 1):
                frames = moving_square(direction=label, seed=100 * label + 10 * group + clip)
                write_video(root / videos / name / f"v_{name}_g{group:02d}_c{clip:02d}.avi", frames, fps=25.0)
    for split in (1, 2, 3):
        train, test = [], []
        for label, name in enumerate(UCF_CLASSES, start=1):
            for group in UCF_GROUPS:
                for clip in range(1, clips + 1):
                    line = f"{name}/v_{name.replace('Handstand', 'HandStand')}_g{group:02d}_c{clip:02d}.avi"
                    test.append(line) if group == split else train.append(f"{line} {label}")
        write_crlf(root / lists / f"trainlist{split:02d}.txt", train)
        write_crlf(root / lists / f"testlist{split:02d}.txt", test)
    return root


def write_json(path: Path, value: object) -> None:
    """Write a value as JSON."""
    path.write_text(json.dumps(value, indent=0))


def write_crlf(path: Path, lines: Iterable[str]) -> None:
    """Write lines with CRLF ends, as in UCF-101's lists."""
    path.write_bytes("".join(f"{line}\r\n" for line in lines).encode())
