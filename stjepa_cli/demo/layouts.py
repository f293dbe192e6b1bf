"""Generated clips written as files in the official layouts of both data sets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from stjepa_cli.core.errors import storage_errors
from stjepa_cli.core.prefetch import ordered_map
from stjepa_cli.core.progress import SILENT, Progress
from stjepa_cli.data.video import encode_video
from stjepa_cli.demo.synthetic import FPS, MOTIONS, TEMPLATES, FamilyName, draw_clips

NUM_WORKERS = 2
CLIPS_AT_ONCE = 256
NUM_SPLITS = 3
CLIPS_IN_GROUP = 4

Named = tuple[Path, Tensor]


def write_ssv2(root: Path, num_train: int, num_validation: int, seed: int, *, progress: Progress = SILENT) -> None:
    """The Something-Something v2 layout: JSON lists and `20bn-something-something-v2/<id>.webm`, `train` family.

    Args:
        root: folder to write into.
        num_train: clips in `train.json`.
        num_validation: clips in `validation.json`; there is no `test.json`.
        seed: the same seed gives the same pixels.
        progress: is told of every file.
    """
    total = num_train + num_validation
    labels: list[int] = []

    def named() -> Iterator[Named]:
        for clip, label in _drawn(total, seed, "train"):
            labels.append(label)
            yield root / "20bn-something-something-v2" / f"{len(labels)}.webm", clip

    _encode(named(), total, "draw and encode ssv2", progress)
    entries = [_entry(str(i + 1), label) for i, label in enumerate(labels)]
    _write_json(root / "train.json", entries[:num_train])
    _write_json(root / "validation.json", entries[num_train:])
    _write_json(root / "labels.json", {_plain(template): str(i) for i, template in enumerate(TEMPLATES)})


def write_ucf101(root: Path, num_train: int, num_test: int, seed: int, *, progress: Progress = SILENT) -> None:
    """The UCF-101 layout: CRLF lists and `UCF-101/<Class>/v_<Class>_gNN_cNN.avi`, `unseen` family.

    Every `CLIPS_IN_GROUP` clips of a class are a group; in each of the three splits other groups are for testing.

    Args:
        root: folder to write into.
        num_train: clips in each `trainlist`, about.
        num_test: clips in each `testlist`, about.
        seed: the same seed gives the same pixels.
        progress: is told of every file.
    """
    total = num_train + num_test
    files: list[tuple[str, int, int]] = []
    seen = [0] * len(MOTIONS)

    def named() -> Iterator[Named]:
        for clip, label in _drawn(total, seed, "unseen"):
            group, place = divmod(seen[label], CLIPS_IN_GROUP)
            seen[label] += 1
            name = f"{MOTIONS[label]}/v_{MOTIONS[label]}_g{group + 1:02d}_c{place + 1:02d}.avi"
            files.append((name, label, group))
            yield root / "UCF-101" / name, clip

    _encode(named(), total, "draw and encode ucf101", progress)
    lists = root / "ucfTrainTestlist"
    _write_lines(lists / "classInd.txt", [f"{i + 1} {name}" for i, name in enumerate(MOTIONS)])
    num_groups = max(group for _, _, group in files) + 1
    for split in range(NUM_SPLITS):
        test_groups = _test_groups(num_groups, num_test / total, split)
        _write_lines(lists / f"testlist0{split + 1}.txt", [name for name, _, group in sorted(files) if group in test_groups])
        train = [f"{name} {label + 1}" for name, label, group in sorted(files) if group not in test_groups]
        _write_lines(lists / f"trainlist0{split + 1}.txt", train)


def _test_groups(num_groups: int, share: float, split: int) -> set[int]:
    """The groups that a split tests on: `share` of them, starting at another one in each split."""
    if num_groups < 2:
        raise ValueError(f"train and test need groups of their own: {num_groups} group a class, expected 2 or more")
    count = min(num_groups - 1, max(1, round(share * num_groups)))
    first = split * max(1, num_groups // NUM_SPLITS)
    return {(first + i) % num_groups for i in range(count)}


def _drawn(num_clips: int, seed: int, family: FamilyName) -> Iterator[tuple[Tensor, int]]:
    """Clips uint8 (T, 3, H, W) with labels; drawn some at a time, each lot from a seed of its own."""
    for start in range(0, num_clips, CLIPS_AT_ONCE):
        clips, labels = draw_clips(min(CLIPS_AT_ONCE, num_clips - start), seed * 100_003 + start, family)
        yield from zip(clips, labels.tolist(), strict=True)


def _encode(named: Iterator[Named], total: int, what: str, progress: Progress) -> None:
    def write(entry: Named) -> None:
        path, clip = entry
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        encode_video(path, clip, fps=FPS)

    with progress.task(what, total=total) as task:
        for _ in ordered_map(write, named, num_workers=NUM_WORKERS):
            task.advance(1)


def _entry(video: str, label: int) -> dict[str, object]:
    return {
        "id": video,
        "label": _plain(TEMPLATES[label]).lower().replace("something", "a shape"),
        "template": TEMPLATES[label],
        "placeholders": ["a shape"],
    }


def _plain(template: str) -> str:
    return template.replace("[", "").replace("]", "")


def _write_json(path: Path, value: object) -> None:
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value, indent=1) + "\n")


def _write_lines(path: Path, lines: list[str]) -> None:
    """CRLF line ends, as the official lists have."""
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes("".join(line + "\r\n" for line in lines).encode())
