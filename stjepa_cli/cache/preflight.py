"""Use case: check whether this machine is ready, and name the next step for everything that is missing."""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from dataclasses import dataclass

import torch

from stjepa_cli.core.config import LATENT_DIM
from stjepa_cli.core.errors import DatasetError, NotReadyError, StjepaError, VideoError
from stjepa_cli.core.locations import Location, is_local, total_bytes
from stjepa_cli.core.prefetch import ordered_map
from stjepa_cli.core.runtime import Runtime
from stjepa_cli.core.types import ClipSpec
from stjepa_cli.data.datasets.base import Dataset, VideoItem, folder_sizes, open_dataset, spread
from stjepa_cli.data.video import ffmpeg_version, read_clip
from stjepa_cli.teachers.base import survey

ADVISED_GPU_BYTES = 16 * 10**9
ALL_CORES = Runtime(workers=os.cpu_count() or 1)
NUM_SAMPLED = 8
NUM_NAMED = 3
NUM_SSV2_TRAIN = 168_913
OTHER_TEACHERS = "Pass --teacher a local folder of a VideoMAE or V-JEPA 2, or --teacher hog, which needs no weights."


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: Stable name for scripts: `ffmpeg`, `gpu`, `ssv2`, `ssv2-decode`, `ucf101`, `ucf101-decode`, `disk`, `teacher`.
        ok: Whether it passed.
        detail: Findings.
        fix: The next step, a command or an address; empty if `ok`.
    """

    name: str
    ok: bool
    detail: str
    fix: str = ""


@dataclass(frozen=True)
class PreflightReport:
    """The results of all checks; `ok` if every one passed."""

    ok: bool
    checks: tuple[Check, ...]


@dataclass(frozen=True)
class _Listing:
    """A data set according to its lists and the disk: the items of each split, and the size of each file that is there."""

    dataset: Dataset
    splits: dict[str, tuple[VideoItem, ...]]
    sizes: dict[str, int]  # by text: with 220,000 files, paths as keys take most of the time

    def usable(self) -> tuple[VideoItem, ...]:
        """Return the listed videos that are there and not empty, each file once."""
        by_path = {str(item.path): item for items in self.splits.values() for item in items}
        return tuple(item for path, item in by_path.items() if self.sizes.get(path))


def preflight(
    ssv2: Location, ucf101: Location, cache: Location, teacher: str, *, deep: bool, runtime: Runtime = ALL_CORES
) -> PreflightReport:
    """Check everything that the commands need; nothing is changed or downloaded.

    Args:
        ssv2: Folder or URL of Something-Something v2.
        ucf101: Folder or URL of UCF-101.
        cache: Folder or URL of the latent cache, existing or not.
        teacher: Id, folder or built-in name of the teacher.
        deep: Decode every listed video instead of a small sample of each data set.
        runtime: Decoding threads, and the receiver of progress.
    """
    checks = [_ffmpeg(), check_gpu()]
    num_train = NUM_SSV2_TRAIN  # a size to plan with until there is a list
    for name, root in (("ssv2", ssv2), ("ucf101", ucf101)):
        try:
            listing = _list(open_dataset(name, root))
        except DatasetError as error:
            problem = Check(name, False, _plain(error), error.fix or "")
            checks += [problem, Check(f"{name}-decode", False, "not tried: the data set cannot be listed", problem.fix)]
            continue
        checks += [_files(name, listing), _decode(name, listing, deep, checks[0], runtime)]
        if name == "ssv2":
            num_train = len(listing.splits["train"])
    at_hand, clip = _teacher(teacher)
    checks += [_disk(cache, num_train, clip), at_hand]
    return PreflightReport(all(check.ok for check in checks), tuple(checks))


def _ffmpeg() -> Check:
    try:
        return Check("ffmpeg", True, ffmpeg_version())
    except NotReadyError as error:
        return Check("ffmpeg", False, _plain(error), error.fix or "")


def check_gpu() -> Check:
    """Describe the GPU; its absence is no failure, because everything runs on the CPU, only not at full size."""
    if not torch.cuda.is_available():
        return Check("gpu", True, "no CUDA GPU: everything runs on the CPU, with the teacher hog and the presets tiny and small")
    memory = torch.cuda.get_device_properties(0).total_memory
    detail = f"{torch.cuda.get_device_name(0)} with {_gb(memory)}"
    if memory < ADVISED_GPU_BYTES:
        detail += f", less than the advised {_gb(ADVISED_GPU_BYTES)}: halve --batch-size if memory runs out"
    return Check("gpu", True, detail)


def _list(dataset: Dataset) -> _Listing:
    """Read all lists of a data set and the sizes of the files that they name; each folder is read once.

    Raises:
        DatasetError: A required list is missing or cannot be read.
    """
    splits = {}
    for split in dataset.splits:
        if dataset.list_file(split).is_file() or split not in dataset.optional_splits:
            splits[split] = dataset.videos(split)
    names: dict[str, set[str]] = defaultdict(set)  # names of the listed files, by the text of their folder with its last slash
    folders: dict[str, Location] = {}
    for item in (item for items in splits.values() for item in items):
        before, slash, name = str(item.path).rpartition("/")
        names[before + slash].add(name)
        if before + slash not in folders:
            folders[before + slash] = item.path.parent
    sizes = {prefix + name: size for prefix, folder in folders.items() for name, size in folder_sizes(folder, names[prefix])}
    return _Listing(dataset, splits, sizes)


def _files(name: str, listing: _Listing) -> Check:
    """Count the listed, present, missing and empty files in each split."""
    dataset, parts, bad = listing.dataset, [], 0
    for split, items in listing.splits.items():
        missing = [item.path.name for item in items if str(item.path) not in listing.sizes]
        empty = [item.path.name for item in items if listing.sizes.get(str(item.path)) == 0]
        bad += len(missing) + len(empty)
        present = len(items) - len(missing) - len(empty)
        text = f"{split}: {len(items):,} listed, {present:,} present"
        text += f", {len(missing):,} missing ({_some(missing)})" if missing else ""
        parts.append(text + (f", {len(empty):,} empty ({_some(empty)})" if empty else ""))
    parts += [f"{split}: no list (optional)" for split in dataset.splits if split not in listing.splits]
    detail = f"{dataset.root}, {len(dataset.classes)} classes; " + "; ".join(parts)
    if not bad:
        return Check(name, True, detail)
    if not listing.usable():
        return Check(name, False, f"no videos. {detail}", dataset.how_to_get)
    fix = f"Unpack the missing and empty files again into {dataset.video_folder}; they come from {dataset.homepage}."
    return Check(name, False, detail, fix)


def _decode(name: str, listing: _Listing, deep: bool, ffmpeg: Check, runtime: Runtime) -> Check:
    """Decode a clip from videos as a build does: from all of them if `deep`, else from a few of different classes."""
    name = f"{name}-decode"
    usable = listing.usable()
    if not ffmpeg.ok:
        return Check(name, False, f"not tried: {ffmpeg.detail}", ffmpeg.fix)
    if not usable:
        return Check(name, False, "not tried: there are no videos", listing.dataset.how_to_get)
    chosen = usable if deep else spread(usable, NUM_SAMPLED)
    failures: list[VideoError] = []
    with runtime.progress.task(f"decoding {listing.dataset.title}", total=len(chosen), unit="videos") as task:
        for failure in ordered_map(_failure, chosen, num_workers=runtime.workers):
            if failure:
                failures.append(failure)
                runtime.progress.note(str(failure))
            task.advance(failed=len(failures))
    tried = f"{len(chosen):,} of {len(usable):,} videos tried"
    if not failures:
        return Check(name, True, f"{tried}, all decode" + ("" if deep else "; --deep decodes all"))
    named = failures if deep else failures[:NUM_NAMED]
    detail = f"{tried}, {len(failures):,} cannot be decoded: " + "; ".join(map(str, named))
    fix = f"Unpack them again from the files of {listing.dataset.homepage}; " + ("" if deep else "--deep lists all that are damaged; ")
    fix += "a build skips them."
    return Check(name, False, detail, fix)


def _failure(item: VideoItem) -> VideoError | None:
    try:
        read_clip(item.path, ClipSpec())
    except VideoError as error:
        return error
    return None


def _teacher(name: str) -> tuple[Check, ClipSpec]:
    """Check that the weights are on this machine; return their clip geometry too (the default if it is unknown)."""
    try:
        found = survey(name)
    except StjepaError as error:
        return Check("teacher", False, _plain(error), error.fix or OTHER_TEACHERS), ClipSpec()
    detail = f"{name}: {found.detail}; licence {found.licence}"
    fix = "" if found.at_hand else f"Type `hf download {name}`, or choose another: {OTHER_TEACHERS}"
    return Check("teacher", found.at_hand, detail, fix), found.clip or ClipSpec()


def _disk(cache: Location, num_clips: int, clip: ClipSpec) -> Check:
    """Compare the free space with the float16 latents of every clip that are not there yet."""
    needed = num_clips * clip.grid.num_tokens * LATENT_DIM * 2
    takes = f"a cache of {num_clips:,} train clips of {clip.grid.num_tokens:,} tokens takes {_gb(needed)}"
    try:
        written = total_bytes(cache)
    except OSError as error:
        return Check("disk", False, f"{cache} cannot be read ({error})", "Pass --cache or set STJEPA_CACHE: a place of your own.")
    takes += f", of which {_gb(written)} are there" if written else ""
    if not is_local(cache):
        return Check("disk", True, f"the free space of {cache} is not known; {takes}")
    place = next(folder for folder in (cache.absolute(), *cache.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(place).free
    detail = f"{_gb(free)} free at {place}; {takes}"
    if not os.access(place, os.W_OK):
        return Check("disk", False, f"no permission to write to {place}", "Pass --cache or set STJEPA_CACHE: a folder of your own.")
    if free >= needed - written:
        return Check("disk", True, detail)
    short = _gb(needed - written - free)
    return Check("disk", False, detail, f"Free {short} there, or pass --cache or set STJEPA_CACHE: a place on a larger disk.")


def _plain(error: StjepaError) -> str:
    """Return the text of an error without its next step."""
    return str(error).removesuffix(f". {error.fix}")


def _some(names: list[str]) -> str:
    """Return the first few names."""
    return ", ".join(names[:NUM_NAMED]) + (", ..." if len(names) > NUM_NAMED else "")


def _gb(num_bytes: int) -> str:
    """Return a size in GB, with two digits below 10 GB, or in MB if it is small."""
    if num_bytes < 10**8:
        return f"{num_bytes / 1e6:,.1f} MB"
    return f"{num_bytes / 1e9:,.0f} GB" if num_bytes >= 10**10 else f"{num_bytes / 1e9:.1f} GB"
