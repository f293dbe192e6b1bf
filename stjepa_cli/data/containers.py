"""Checks of a video file that need no decoder: it is there, it is a video container, and it is whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stjepa_cli.core.errors import VideoError
from stjepa_cli.core.locations import Location, RemoteFile

Source = Path | RemoteFile
"""An open source of a video's bytes: a local path, or a remote file."""

_HEAD_BYTES = 4096
_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp", b"pnot")
_MEDIA_BOXES = (b"moov", b"mdat", b"moof")
_PLAYLISTS = (b"ffconcat", b"#EXTM3U")
_TEXT = frozenset(b"\t\n\r\f") | frozenset(range(0x20, 0x7F)) | frozenset(range(0x80, 0x100))


def check_file(path: Location, source: Source) -> None:
    """Refuse what cannot be a video.

    A text file is refused before FFmpeg sees it: a playlist under a video's name would make it read other files.

    Raises:
        VideoError: It is missing, a folder, unreadable, empty, or text.
    """
    if isinstance(source, Path) and not source.is_file():
        raise VideoError(path, "it is a folder" if source.is_dir() else "there is no such file")
    if isinstance(source, Path) and not os.access(source, os.R_OK):
        raise VideoError(path, "no permission to read it")
    if _num_bytes(source) == 0:
        raise VideoError(path, "the file is empty")
    if _is_text(_read_at(source, 0, _HEAD_BYTES)):
        raise VideoError(path, "not a video (it is text)")


def check_whole(path: Location, source: Source, num_announced: int | None, num_found: int) -> None:
    """Refuse a file that was cut short: it opens as a shorter video and would look fine.

    Args:
        path: The file.
        source: Its bytes.
        num_announced: Frames that its header announces, None where it does not say.
        num_found: Frames that were found.

    Raises:
        VideoError: It has fewer bytes than it announces and, if it is an avi, fewer frames.
    """
    reason = cut_short(source)
    if reason and _read_at(source, 0, 4) == b"RIFF" and num_announced is not None and num_found >= num_announced:
        return  # the header of an avi may be off by a few bytes, so its frames must be too few as well
    if reason:
        raise VideoError(path, reason)


def cut_short(source: Source) -> str | None:
    """Return what is wrong with a file that has fewer bytes than it announces, else None."""
    announced, found = announced_bytes(source), _num_bytes(source)
    if announced is None or found >= announced:
        return None
    return f"it is cut short: {found:,} bytes, its header announces {announced:,}"


def announced_bytes(source: Source) -> int | None:
    """Return the length that a webm, Matroska, avi or mp4 file announces; None where it announces none.

    ```text
    avi   "RIFF" size:4 ...              size counts from byte 8
    webm  EBML header, Segment id 18538067, size:1..8 as a variable-length integer, ...
    mp4   boxes of size:4 name:4, or 1:4 name:4 size:8; the last one ends where the file ends
    ```
    """
    head = _read_at(source, 0, _HEAD_BYTES)
    if head[:4] == b"RIFF":
        return 8 + int.from_bytes(head[4:8], "little")
    if head[4:8] in _MP4_BOXES:
        return _end_of_boxes(source)
    segment = head.find(b"\x18\x53\x80\x67")
    if head[:4] != b"\x1a\x45\xdf\xa3" or segment < 0 or segment + 5 > len(head):
        return None
    start = segment + 4
    length = 9 - head[start].bit_length()
    value = int.from_bytes(head[start : start + length], "big") & ((1 << 7 * length) - 1)
    return None if value == (1 << 7 * length) - 1 else start + length + value


@contextmanager
def reading(path: Location) -> Iterator[None]:
    """Turn what a file system says when a file is opened or read into a `VideoError`."""
    try:
        yield
    except (FileNotFoundError, IsADirectoryError) as error:
        raise VideoError(path, "there is no such file") from error
    except PermissionError as error:
        raise VideoError(path, "no permission to read it") from error
    except OSError as error:
        raise VideoError(path, f"it cannot be read ({first_line(error)})") from error


def first_line(error: Exception) -> str:
    """Return the first line of an error, without the place in torchcodec's sources that it begins with."""
    line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return line.split(", ", 2)[-1] if ".cpp:" in line else line


def _end_of_boxes(source: Source) -> int | None:
    """Return where the last box of an mp4 file ends if it holds media; None if it does not, or does not say where it ends."""
    place, num_bytes, name = 0, _num_bytes(source), b""
    while place < num_bytes:
        header = _read_at(source, place, 16)
        size, name = int.from_bytes(header[:4], "big"), header[4:8]
        if size == 1:
            size = int.from_bytes(header[8:16], "big")
        if size < 8:  # 0 stands for up to the end of the file
            return None
        place += size
    return place if place == num_bytes or name in _MEDIA_BOXES else None


def _is_text(head: bytes) -> bool:
    """Tell if the first bytes of a file are a playlist or other text; no video container starts with a line of text."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().split(b"\0", 1)[0]
    if text.startswith(_PLAYLISTS):
        return True
    return not head.startswith((b"RIFF", b"YUV4MPEG2")) and b"\n" in text and set(text) <= _TEXT


def _num_bytes(source: Source) -> int:
    return source.stat().st_size if isinstance(source, Path) else source.seek(0, os.SEEK_END)


def _read_at(source: Source, place: int, num_bytes: int) -> bytes:
    if isinstance(source, RemoteFile):
        source.seek(place)
        return source.read(num_bytes)
    with source.open("rb") as file:
        file.seek(place)
        return file.read(num_bytes)
