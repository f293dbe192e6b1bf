"""Write further tiny labelled data sets: HMDB-51, Kinetics-style lists, a folder of class folders."""

from __future__ import annotations

from pathlib import Path

from tests.media import moving_square, write_video

HMDB_CLASSES = ("brush_hair", "cartwheel", "shake_hands")
NAMES = ("right", "left", "down")
NUM_VIDEOS = 4


def write_tiny_hmdb51(root: Path, *, lists: str = "testTrainMulti_7030_splits", videos: str = "hmdb51_org") -> Path:
    """Write a tiny HMDB-51: 3 classes of 4 avi files; split s tests on file s - 1, leaves out the last and trains on the others."""
    (root / lists).mkdir(parents=True)
    for label, name in enumerate(HMDB_CLASSES):
        files = [f"#{i} clip_{name}_f_nm.avi" for i in range(NUM_VIDEOS)]
        for i, file in enumerate(files):
            write_video(root / videos / name / file, moving_square(direction=label, seed=10 * label + i))
        for split in (1, 2, 3):
            uses = ["2" if i == split - 1 else "0" if i == NUM_VIDEOS - 1 else "1" for i in range(NUM_VIDEOS)]
            lines = [f"{file} {use} \n" for file, use in zip(files, uses, strict=True)]
            (root / lists / f"{name}_test_split{split}.txt").write_text("".join(lines))
    return root


def write_tiny_kinetics(root: Path) -> Path:
    """Write tiny Kinetics-style lists: 3 classes of 2 videos for training, 1 for validation and 1 for testing."""
    uses = {"train": (0, 1), "val": (2,), "test": (3,)}
    for label, name in enumerate(NAMES):
        for i in range(NUM_VIDEOS):
            write_video(root / "videos" / name / f"{i} {name}.mp4", moving_square(direction=label, seed=10 * label + i))
    for split, numbers in uses.items():
        lines = [f"videos/{name}/{i} {name}.mp4 {label}\n" for label, name in enumerate(NAMES) for i in numbers]
        (root / f"{split}.csv").write_text("".join(lines))
    return root


def write_tiny_folder(root: Path) -> Path:
    """Write class folders below `train` (3 videos each) and `test` (1 each)."""
    for label, name in enumerate(NAMES):
        for i in range(NUM_VIDEOS):
            side = "test" if i == NUM_VIDEOS - 1 else "train"
            write_video(root / side / name / f"{i}.mp4", moving_square(direction=label, seed=10 * label + i))
    return root
