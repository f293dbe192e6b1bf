"""Files of heads: the tensors of a head as safetensors, with a typed header that says where it comes from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from stjepa_cli.core.errors import CheckpointError, ConfigError
from stjepa_cli.core.files import file_digest
from stjepa_cli.core.serialization import from_dict, refuse_newer
from stjepa_cli.judgements import heads
from stjepa_cli.judgements.heads import Head
from stjepa_cli.models.tensor_file import load_group, read_metadata, write_tensors
from stjepa_cli.search.records import Column

SCHEMA = 1
_GROUP, _HEADER = "head", "head"


@dataclass(frozen=True)
class HeadHeader:
    """What a head is and where it comes from. It holds no time and no path, so that the same log and seed give the same file.

    Attributes:
        kind: `linear`, `mlp` or `attention`.
        loss: Name of the loss.
        mode: Mode of the judgements.
        dim: Width of its vectors.
        input_dim: Width of the vectors that it reads.
        input_kind: Kind of the column that it reads.
        pool: Pooling of that column.
        column: Name of that column.
        encoder: Name of the encoder of that column.
        encoder_digest: Digest of that encoder, 64 hex digits.
        log_digest: Digest of the judgements, 64 hex digits.
        split_seed: Seed of the splits.
        temperature: Temperature of the loss.
        keep_raw: Whether nothing was learned, since it would not surely have been better than the raw vectors.
        report: Figures about the training, as `stjepa head report --json` prints them.
        schema: Version of this header.
    """

    kind: str
    loss: str
    mode: str
    dim: int
    input_dim: int
    input_kind: str
    pool: str
    column: str
    encoder: str
    encoder_digest: str
    log_digest: str
    split_seed: int
    temperature: float
    keep_raw: bool
    report: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    def check_fits(self, column: Column, table: str) -> None:
        """Refuse a column whose vectors are not those that the head was trained on.

        Args:
            column: The column.
            table: Name of its table, for the message.

        Raises:
            ConfigError: It is of another encoder, kind, width or pooling; the message names both.
        """
        if column.model_digest != self.encoder_digest:
            got, expected = (
                f"{name} (digest {digest[:12]})"
                for name, digest in ((column.model, column.model_digest), (self.encoder, self.encoder_digest))
            )
            fix = "Name the right one with --from, or train a head for this encoder."
            raise ConfigError(f"column {column.name} of {table} is of another encoder than the head", got=got, expected=expected, fix=fix)
        mine = (self.input_kind, self.input_dim, self.pool)
        theirs = (column.kind, column.dim, column.pool)
        if mine != theirs:
            got, expected = (f"{kind} of {dim} channels, pooling {pool}" for kind, dim, pool in (theirs, mine))
            raise ConfigError(f"column {column.name} of {table} does not fit the head", got=got, expected=expected)


def write_head(path: Path, head: Head, header: HeadHeader) -> None:
    """Write a head, whole or not at all.

    Raises:
        StjepaError: The file cannot be written.
    """
    tensors = {f"{_GROUP}.{name}": tensor for name, tensor in head.state_dict().items()}
    write_tensors(path, tensors, {_HEADER: json.dumps(asdict(header), sort_keys=True)})


def read_header(path: Path) -> HeadHeader:
    """Read what a head is, without its tensors.

    Raises:
        ConfigError: There is no such file, or it holds no head.
        StjepaError: It is damaged or cannot be read.
    """
    if not path.is_file():
        raise ConfigError("there is no head", got=path, fix=f"Type `stjepa head train TABLE --log LOG --mode MODE --out {path}`.")
    metadata: Mapping[str, str] = read_metadata(path)
    if _HEADER not in metadata:
        raise ConfigError(f"{path} is not a head that `stjepa head train` has written")
    data = json.loads(metadata[_HEADER])
    refuse_newer(data, SCHEMA, f"the head {path}")
    return from_dict(HeadHeader, data, where=f"the head {path}")


def read_head(path: Path) -> tuple[Head, HeadHeader]:
    """Read a head.

    Raises:
        ConfigError: There is no such file, or it holds no head.
        StjepaError: It is damaged or cannot be read.
    """
    header = read_header(path)
    try:
        head = heads.build(header.kind, torch.zeros(header.dim, header.input_dim), torch.Generator())
    except ConfigError as error:
        raise CheckpointError(f"the head {path} cannot be used: {error.sentence()}", fix="Update stjepa.") from error
    load_group(head, path, _GROUP)
    return head.eval(), header


def head_digest(path: Path) -> str:
    """Return the sha256 of the file of a head: the digest of the columns that it writes."""
    return file_digest(path)
