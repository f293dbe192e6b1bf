"""Write generated clips in the official layouts of Something-Something v2 and UCF-101."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from stjepa_cli.core.files import write_atomic
from stjepa_cli.core.progress import SILENT, Progress
from stjepa_cli.demo.scenes import GeneratedClips
from stjepa_cli.demo.writing import write_clips

NUM_SPLITS = 3
CLIPS_IN_GROUP = 4


def write_ssv2(root: Path, clips: GeneratedClips, *, num_validation: int, processes: int = 0, progress: Progress = SILENT) -> None:
    """Write the Something-Something v2 layout: JSON lists and `20bn-something-something-v2/<id>.webm`.

    Args:
        root: Folder to write into; files of an earlier call that was stopped are kept.
        clips: The clips; the last ones are for validation.
        num_validation: Clips in `validation.json`; the others are in `train.json`, and there is no `test.json`.
        processes: Number of processes that write, 0 for one per available core.
        progress: Receives progress.

    Raises:
        StjepaError: As `writing.write_clips`.
    """
    names = [f"20bn-something-something-v2/{i + 1}.webm" for i in range(clips.num_clips)]
    write_clips(root, clips, names, processes=processes, progress=progress)
    templates = clips.templates
    entries = [_entry(str(i + 1), templates[label]) for i, label in enumerate(clips.labels())]
    num_train = clips.num_clips - num_validation
    _write_json(root / "train.json", entries[:num_train])
    _write_json(root / "validation.json", entries[num_train:])
    _write_json(root / "labels.json", {_plain(template): str(i) for i, template in enumerate(templates)})


def write_ucf101(root: Path, clips: GeneratedClips, *, test_fraction: float, processes: int = 0, progress: Progress = SILENT) -> None:
    """Write the UCF-101 layout: CRLF lists and `UCF-101/<Class>/v_<Class>_gNN_cNN.avi`.

    Every `CLIPS_IN_GROUP` clips of a class are a group; each of the three splits tests on other groups.

    Args:
        root: Folder to write into; files of an earlier call that was stopped are kept.
        clips: The clips.
        test_fraction: Fraction of the groups in each `testlist`, about.
        processes: Number of processes that write, 0 for one per available core.
        progress: Receives progress.

    Raises:
        StjepaError: As `writing.write_clips`.
    """
    classes, labels = clips.classes, clips.labels()
    groups = _groups(labels, len(classes))
    names = [f"{classes[label]}/v_{classes[label]}_g{group + 1:02d}_c{place + 1:02d}.avi" for label, (group, place) in groups]
    write_clips(root, clips, [f"UCF-101/{name}" for name in names], processes=processes, progress=progress)
    files = sorted((name, label, group) for name, (label, (group, _)) in zip(names, groups, strict=True))
    lists, num_groups = root / "ucfTrainTestlist", 1 + max(group for _, _, group in files)
    _write_lines(lists / "classInd.txt", [f"{i + 1} {name}" for i, name in enumerate(classes)])
    for split in range(NUM_SPLITS):
        test = _test_groups(num_groups, test_fraction, split)
        _write_lines(lists / f"testlist0{split + 1}.txt", [name for name, _, group in files if group in test])
        train = [f"{name} {label + 1}" for name, label, group in files if group not in test]
        _write_lines(lists / f"trainlist0{split + 1}.txt", train)


def _groups(labels: Sequence[int], num_classes: int) -> list[tuple[int, tuple[int, int]]]:
    """Return the label of each clip with its group and its place in the group, both from 0 within the class."""
    seen, found = [0] * num_classes, []
    for label in labels:
        found.append((label, divmod(seen[label], CLIPS_IN_GROUP)))
        seen[label] += 1
    return found


def _test_groups(num_groups: int, fraction: float, split: int) -> set[int]:
    """Return the groups that a split tests on, starting at another one in each split."""
    if num_groups < 2:
        raise ValueError(f"train and test need groups of their own: {num_groups} group per class, expected 2 or more")
    count = min(num_groups - 1, max(1, round(fraction * num_groups)))
    first = split * max(1, num_groups // NUM_SPLITS)
    return {(first + i) % num_groups for i in range(count)}


def _entry(video: str, template: str) -> dict[str, object]:
    return {
        "id": video,
        "label": _plain(template).lower().replace("something", "a shape"),
        "template": template,
        "placeholders": ["a shape"] * template.count("[something]"),
    }


def _plain(template: str) -> str:
    return template.replace("[", "").replace("]", "")


def _write_json(path: Path, value: object) -> None:
    write_atomic(path, (json.dumps(value, indent=1) + "\n").encode())


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    """Write lines with CRLF ends, as the official lists have."""
    write_atomic(path, "".join(line + "\r\n" for line in lines).encode())
