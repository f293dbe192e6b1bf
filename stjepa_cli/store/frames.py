"""Clips as JPEGs, one Zarr chunk per clip, kept beside the latents so that training needs no video. The one user of simplejpeg.

```text
number of frames:4 | length:4, JPEG of frame 0 | length:4, JPEG of frame 1 | ...        integers little-endian
```
These are the bytes of Zarr's `vlen-bytes` codec for a row of variable-length byte strings, so any Zarr reader gets the JPEGs.

The JPEGs have quality 90 and halved chroma (4:2:0), like the videos themselves. On webm clips of 240 lines that costs 156 kB
and 4 ms per clip at a PSNR of 43 dB; full chroma costs 190 kB and 6 ms at 45 dB, and WebP takes four times as long. The fast
transforms of libjpeg-turbo lose 2 dB and gain nothing. `tests/benchmarks/bench_decode.py` measures all of this.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import simplejpeg
import torch
from torch import Tensor

QUALITY = 90
SUBSAMPLING = "420"

_LENGTH = struct.Struct("<I")


def encode_clip(pixels: Tensor) -> bytes:
    """Encode a clip as one chunk.

    Args:
        pixels: RGB clip, uint8 (T, 3, S, S), on the CPU.

    Raises:
        ValueError: The pixels have another shape or type.
    """
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.shape[2] != pixels.shape[3]:
        raise ValueError(f"a clip is uint8 (T, 3, S, S), got {pixels.dtype} {tuple(pixels.shape)}")
    pictures = pixels.permute(0, 2, 3, 1).contiguous().numpy()
    return chunk_of(
        [simplejpeg.encode_jpeg(picture, quality=QUALITY, colorspace="RGB", colorsubsampling=SUBSAMPLING) for picture in pictures]
    )


def chunk_of(jpegs: Sequence[bytes]) -> bytes:
    """Join JPEG files, one per frame, into a chunk."""
    return b"".join([_LENGTH.pack(len(jpegs)), *(part for jpeg in jpegs for part in (_LENGTH.pack(len(jpeg)), jpeg))])


def decode_clip(chunk: bytes | memoryview, size_px: int, out: Tensor | None = None) -> Tensor:
    """Decode a chunk into pixels; threads decode side by side, because decoding releases Python's lock.

    Args:
        chunk: The bytes that `encode_clip` returned, without a checksum.
        size_px: S, side of the frames.
        out: Tensor to fill, contiguous uint8 (T, 3, S, S) on the CPU; a new one if None.

    Returns:
        `out`, RGB, uint8 (T, 3, S, S).

    Raises:
        ValueError: The chunk is malformed (a clause says how), or `out` does not fit it.
    """
    items = _items(memoryview(chunk).cast("B"))
    shape = (len(items), 3, size_px, size_px)
    if out is None:
        out = torch.empty(shape, dtype=torch.uint8)
    elif out.shape != shape or out.dtype != torch.uint8 or not out.is_contiguous():
        raise ValueError(f"decodes to contiguous uint8 {shape}, got {out.dtype} {tuple(out.shape)} to write to")
    # through a picture of four bytes per pixel: shifting words separates the colours twice as fast as copying bytes
    picture = np.empty((size_px, size_px, 4), np.uint8)
    words = picture.view("<u4")[:, :, 0]
    for i, (jpeg, frame) in enumerate(zip(items, out.numpy(), strict=True)):
        _decode_picture(jpeg, picture, i)
        frame[0], frame[1], frame[2] = words, words >> 8, words >> 16
    return out


def jpegs(chunk: bytes | memoryview) -> list[bytes]:
    """Return the JPEG files in a chunk, one per frame.

    Raises:
        ValueError: The chunk is malformed.
    """
    return [bytes(item) for item in _items(memoryview(chunk).cast("B"))]


def _decode_picture(jpeg: memoryview, into: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], number: int) -> None:
    """Decode one JPEG into `into`, uint8 (S, S, 4): red, green, blue and an unused byte."""
    try:
        height, width, _ = simplejpeg.decode_jpeg(jpeg, colorspace="RGBX", buffer=into).shape
    except ValueError as error:
        raise ValueError(f"its frame {number} cannot be decoded ({error})") from error
    if (height, width) != into.shape[:2]:
        raise ValueError(f"its frame {number} is {width}x{height} px, expected {into.shape[1]}x{into.shape[0]}")


def _items(chunk: memoryview) -> list[memoryview]:
    """Return the byte strings of a chunk without copying them."""
    size = len(chunk)
    if size < _LENGTH.size:
        raise ValueError(f"it has {size} bytes, too few for a count of frames")
    (count,) = _LENGTH.unpack_from(chunk)
    ends = [_LENGTH.size]
    while len(ends) <= count and ends[-1] + _LENGTH.size <= size:
        (length,) = _LENGTH.unpack_from(chunk, ends[-1])
        ends.append(ends[-1] + _LENGTH.size + length)
    if len(ends) <= count or ends[-1] != size:
        raise ValueError(f"its lengths of {count} frames do not add up to its {size:,} bytes")
    return [chunk[start + _LENGTH.size : end] for start, end in pairwise(ends)]
