"""The Zarr v3 arrays of a cache: created, checked, and read through zarr where they are not read directly. The one user of zarr."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stjepa_cli.core.errors import CacheError
from stjepa_cli.core.locations import Location, driver_errors
from stjepa_cli.store.errors import rebuild, unreadable
from stjepa_cli.store.projection import Projection
from stjepa_cli.store.records import CacheHeader, Column

if TYPE_CHECKING:
    import zarr

HEADER, HEADER_DIGEST = "stjepa", "stjepa_digest"
_FILL = {"float16": float("nan"), "int8": 0, "bytes": b""}


def create_arrays(path: Location, header: dict[str, Any], cache: CacheHeader, projection: Projection) -> None:
    """Write the group with the header, an empty array per column, and the projection."""
    import zarr
    from zarr.codecs import Crc32cCodec
    from zarr.dtype import VariableLengthBytes

    group = zarr.create_group(str(path), zarr_format=3, attributes={HEADER: header, HEADER_DIGEST: cache.digest})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have a Zarr V3 specification.*")
        for column in cache.columns:
            group.create_array(
                column.name,
                shape=(cache.num_rows, *column.row_shape),
                dtype=VariableLengthBytes() if column.dtype == "bytes" else column.dtype,
                chunks=(1, *column.row_shape),
                shards=(cache.rows_per_shard, *column.row_shape),
                compressors=[Crc32cCodec()],
                fill_value=_FILL[column.dtype],
            )
    fitted = {name: value for name, value in asdict(projection).items() if name not in ("mean", "matrix")}
    inner = group.create_group("projection", attributes=fitted)
    for name, array in (("mean", projection.mean.numpy()), ("matrix", projection.matrix.numpy())):
        inner.create_array(name, data=array, compressors=[Crc32cCodec()])


def read_projection(path: Location) -> Projection:
    """Read the fitted map.

    Raises:
        OSError: The arrays cannot be read.
        ValueError: The arrays are damaged.
    """
    import zarr

    try:
        group = zarr.open_group(str(path / "projection"), mode="r")
        arrays = {name: torch.from_numpy(np.array(group[name][...])) for name in ("mean", "matrix")}  # type: ignore[index]
        return Projection(mean=arrays["mean"], matrix=arrays["matrix"], **group.attrs.asdict())  # type: ignore[arg-type]
    except OSError:
        raise
    except Exception as error:  # zarr trusts the JSON that it reads: whatever its code does with a wrong type comes through
        raise ValueError(f"{type(error).__name__}: {error}") from error


def open_array(path: Location, name: str) -> zarr.Array[Any]:
    """Open the array of a column through zarr, read-only."""
    import zarr

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have a Zarr V3 specification.*")
        return zarr.open_array(str(path / name), mode="r")


def has_own_layout(path: Location, header: CacheHeader, column: Column) -> bool:
    """Return whether the shards of a column are laid out as stjepa writes them, so that they can be read without zarr.

    Raises:
        CacheError: There is no such array, or it is not what the header says.
        UnreadableError: Its description cannot be read.
    """
    file = path / column.name / "zarr.json"
    try:
        with driver_errors():
            data = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CacheError(f"the cache {path} has lost {column.name}/zarr.json", fix=rebuild(path)) from error
    except OSError as error:
        raise unreadable(file, error) from error
    try:
        found = json.loads(data)
        shape, chunks, codecs = found["shape"], found["chunk_grid"]["configuration"]["chunk_shape"], found["codecs"]
        own = chunks == [header.rows_per_shard, *column.row_shape] and len(codecs) == 1 and codecs[0].get("name") == "sharding_indexed"
        own = own and _is_own_sharding(codecs[0].get("configuration", {}), column)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CacheError(f"{file} is damaged", got=str(error), fix=rebuild(path)) from error
    expected = [header.num_rows, *column.row_shape]
    kind = "variable_length_bytes" if column.dtype == "bytes" else column.dtype
    if shape != expected or found.get("data_type") != kind:
        got = f"{found.get('data_type')} {shape}"
        raise CacheError(f"the array {column.name} in {path} is not what its header says", got=got, expected=f"{kind} {expected}")
    return own


def _is_own_sharding(found: dict[str, Any], column: Column) -> bool:
    """Return whether a chunk is one uncompressed row, chunks and index have checksums, and the index comes last."""
    first = "vlen-bytes" if column.dtype == "bytes" else "bytes"
    inner, index = ([codec.get("name") for codec in found.get(part, [])] for part in ("codecs", "index_codecs"))
    return (
        found.get("chunk_shape") == [1, *column.row_shape]
        and found.get("index_location", "end") == "end"
        and (inner, index) == ([first, "crc32c"], ["bytes", "crc32c"])
        and all(codec.get("configuration", {}).get("endian", "little") == "little" for codec in found["codecs"])
    )
