"""A clip's chunk holds its JPEGs as Zarr does; what is malformed is refused; decoding may run in threads and reuse memory."""

from __future__ import annotations

import json
import struct
import warnings
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from PIL import Image
from torch import Tensor
from zarr.codecs import Crc32cCodec, VLenBytesCodec
from zarr.dtype import VariableLengthBytes
from zarr.errors import UnstableSpecificationWarning

from stjepa_cli.store.frames import decode_clip, encode_clip, jpegs
from stjepa_cli.store.shard_format import checksum
from tests import media

SIZE = 48


def clip(seed: int = 0, num_frames: int = 6) -> Tensor:
    return media.moving_square(num_frames=num_frames, height=SIZE, width=SIZE, direction=seed % 3, seed=seed)


def chunk_of(*items: bytes, count: int | None = None) -> bytes:
    """The layout, written once more."""
    parts = [struct.pack("<I", len(items) if count is None else count)]
    return b"".join(parts + [struct.pack("<I", len(item)) + item for item in items])


def psnr(ours: Tensor, theirs: Tensor) -> float:
    error = (ours.double() - theirs.double()).square().mean()
    return float(10 * torch.log10(255**2 / error))


# ------------------------------------------------------------------------------------------------------- the pictures


def test_a_decoded_clip_is_the_clip_but_for_what_jpeg_costs() -> None:
    pixels = clip()
    again = decode_clip(encode_clip(pixels), SIZE)
    assert (again.shape, again.dtype, again.is_contiguous()) == (pixels.shape, torch.uint8, True)
    assert psnr(again, pixels) > 30  # sharp edges of saturated colours, the worst for halved chroma
    assert media.frame_numbers(again) == list(range(6))


def test_smooth_pictures_lose_next_to_nothing() -> None:
    ramp = torch.linspace(40, 200, SIZE)
    pixels = torch.stack([ramp.expand(SIZE, SIZE), ramp.flip(0).expand(SIZE, SIZE), ramp[:, None].expand(SIZE, SIZE)])
    pixels = pixels.round().to(torch.uint8).expand(4, 3, SIZE, SIZE)
    assert psnr(decode_clip(encode_clip(pixels), SIZE), pixels) > 40


def test_the_jpegs_are_files_that_others_open() -> None:
    pixels = clip()
    chunk = encode_clip(pixels)
    files = jpegs(chunk)
    assert chunk == chunk_of(*files)
    pictures = [Image.open(BytesIO(file)) for file in files]
    assert {(picture.format, picture.mode, picture.size) for picture in pictures} == {("JPEG", "RGB", (SIZE, SIZE))}
    theirs = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2)
    assert psnr(decode_clip(chunk, SIZE), theirs) > 40  # two decoders need not round alike


def test_pixels_of_another_shape_are_refused() -> None:
    for pixels in (clip().float(), clip()[0], clip()[:, :1], clip()[:, :, 1:]):
        with pytest.raises(ValueError, match=r"a clip is uint8 \(T, 3, S, S\)"):
            encode_clip(pixels)


# -------------------------------------------------------------------------------------------------------- the memory


def test_pixels_are_written_where_asked() -> None:
    chunk = encode_clip(clip())
    ring = torch.zeros(3, 6, 3, SIZE, SIZE, dtype=torch.uint8)
    out = decode_clip(memoryview(chunk), SIZE, out=ring[1])
    assert out.data_ptr() == ring[1].data_ptr()
    assert torch.equal(ring[1], decode_clip(chunk, SIZE))
    assert not ring[0].any()
    assert not ring[2].any()


@pytest.mark.parametrize("shape", [(5, 3, SIZE, SIZE), (6, 3, SIZE, 32), (6, SIZE, SIZE, 3)])
def test_memory_that_does_not_fit_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="to write to"):
        decode_clip(encode_clip(clip()), SIZE, out=torch.empty(shape, dtype=torch.uint8))


def test_memory_that_is_not_contiguous_is_refused() -> None:
    with pytest.raises(ValueError, match="contiguous"):
        decode_clip(encode_clip(clip()), SIZE, out=torch.empty(6, SIZE, SIZE, 3, dtype=torch.uint8).permute(0, 3, 1, 2))


def test_threads_decode_what_one_thread_decodes() -> None:
    chunks = [encode_clip(clip(seed)) for seed in range(8)] * 8
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda chunk: decode_clip(chunk, SIZE), chunks))
    assert all(torch.equal(pixels, decode_clip(chunk, SIZE)) for pixels, chunk in zip(together, chunks, strict=True))


# ----------------------------------------------------------------------------------------------------------- malformed


def test_malformed_chunks_are_refused_with_a_clause() -> None:
    files = jpegs(encode_clip(clip()))
    other = jpegs(encode_clip(media.moving_square(num_frames=1, height=16, width=16)))
    larger = jpegs(encode_clip(media.moving_square(num_frames=1, height=96, width=96)))
    whole = chunk_of(*files)
    broken = {
        b"": "too few for a count",
        whole[:3]: "too few for a count",
        whole[:-1]: "do not add up",
        whole + b"\0": "do not add up",
        chunk_of(*files, count=7): "do not add up",
        chunk_of(*files, count=5): "do not add up",
        chunk_of(*files, count=2**32 - 1): "do not add up",
        chunk_of(b"", *files[1:]): "frame 0 cannot be decoded",
        chunk_of(files[0], b"no JPEG", *files[2:]): "frame 1 cannot be decoded",
        chunk_of(*files[:5], files[5][:-40]): "frame 5 cannot be decoded",
        chunk_of(files[0], other[0]): "frame 1 is 16x16 px, expected 48x48",
        chunk_of(files[0], larger[0]): "frame 1 cannot be decoded .*too small",
    }
    for chunk, clause in broken.items():
        with pytest.raises(ValueError, match=clause) as caught:
            decode_clip(chunk, SIZE)
        assert "\n" not in str(caught.value)


def test_flipped_bytes_never_crash() -> None:
    # what a flip changes is for the checksum to find: here it may only be refused or give a picture
    chunk = encode_clip(clip(num_frames=2))
    generator = torch.Generator().manual_seed(0)
    for place in torch.randint(len(chunk), (300,), generator=generator).tolist():
        damaged = bytearray(chunk)
        damaged[place] ^= 1 << place % 8
        try:
            decoded = decode_clip(bytes(damaged), SIZE)
        except ValueError:
            continue
        assert decoded.shape == (2, 3, SIZE, SIZE)


# -------------------------------------------------------------------------------------------------------------- Zarr


def test_a_chunk_is_the_chunk_that_zarr_writes(tmp_path: Path) -> None:
    clips = [clip(seed) for seed in range(4)]
    chunks = [encode_clip(pixels) for pixels in clips]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnstableSpecificationWarning)
        array = zarr.create_array(
            tmp_path,
            name="frames",
            shape=(4, 6),
            chunks=(1, 6),
            shards=(4, 6),
            dtype=VariableLengthBytes(),
            serializer=VLenBytesCodec(),
            compressors=[Crc32cCodec()],
            fill_value=b"",
        )
    array[:] = np.array([jpegs(chunk) for chunk in chunks], dtype=object)
    shard = (tmp_path / "frames/c/0/0").read_bytes()
    index = np.frombuffer(shard[-4 - 4 * 16 : -4], "<u8").reshape(4, 2)
    for chunk, (offset, length) in zip(chunks, index.tolist(), strict=True):
        assert shard[offset : offset + length] == chunk + checksum(chunk).to_bytes(4, "little")
    read = zarr.open_array(tmp_path / "frames", mode="r")
    assert [list(row) for row in np.asarray(read[:])] == [jpegs(chunk) for chunk in chunks]
    metadata = json.loads((tmp_path / "frames/zarr.json").read_text())
    assert metadata["data_type"] == "variable_length_bytes"
    assert metadata["codecs"][0]["configuration"]["codecs"] == [{"name": "vlen-bytes", "configuration": {}}, {"name": "crc32c"}]
