"""Fitted classifiers on frozen features: class probabilities from features, saved for `stjepa infer video`."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from stjepa_cli.core.devices import autocast
from stjepa_cli.core.errors import CheckpointError, ConfigError, StjepaError
from stjepa_cli.core.serialization import from_dict, to_dict
from stjepa_cli.core.types import ClipSpec
from stjepa_cli.models.attentive import initial_weights, num_self_blocks, pooled_logits, rows_at_once
from stjepa_cli.models.tensor_file import read_metadata, read_tensors, write_tensors

KINDS = ("linear", "attentive")
SCHEMA = 1
_KEY = "stjepa_head"
_MAKE = "Type `stjepa infer ucf101 --save-head`, or another data set, to make one."


@dataclass(frozen=True)
class HeadCard:
    """The encoder, clips and classes that a head was fitted for.

    Attributes:
        encoder: Name of the frozen encoder.
        encoder_digest: Digest of its weights. A head does not work with other weights.
        clip: The clips that the encoder takes.
        features: How tokens became features: `mean`, `time`, or `tokens`.
        classes: Names of the C classes, in the order of their numbers.
        plan: The clips of a video that were scored, `16x5x3`.
        sampling: How their frames were sampled, or None for the sampling of the encoder.
        stride: Frames between two taken ones, or None for the stride of the encoder.
        layer: Block of the encoder that gave the tokens, or None for its output.
    """

    encoder: str
    encoder_digest: str
    clip: ClipSpec
    features: str
    classes: tuple[str, ...]
    plan: str = "1x1"
    sampling: str | None = None
    stride: int | None = None
    layer: int | None = None


@dataclass(frozen=True)
class _Header:
    kind: str
    card: HeadCard
    schema: int = SCHEMA


@dataclass(frozen=True)
class Head:
    """A fitted classifier on frozen features.

    Attributes:
        kind: `linear` takes pooled features (R, F), `attentive` takes tokens (R, L, D).
        weights: `weight` (C', F) and `bias` (C',) of a linear head, or the weights of `models.attentive` without a leading axis.
        mean: float32 (F,) or (D,), subtracted from features.
        std: float32 (F,) or (D,), that features are divided by afterwards.
        labels: int64 (C',), the class number of each output. Classes that train lacks are never predicted.
        num_classes: C.
        card: The encoder, clips and classes it was fitted for, or None before these are known.
    """

    kind: str
    weights: dict[str, Tensor]
    mean: Tensor
    std: Tensor
    labels: Tensor
    num_classes: int
    card: HeadCard | None = None

    def to(self, device: torch.device) -> Head:
        """Return the same head on a device."""
        weights = {name: weight.to(device) for name, weight in self.weights.items()}
        return replace(self, weights=weights, mean=self.mean.to(device), std=self.std.to(device), labels=self.labels.to(device))

    def logits(self, features: Tensor) -> Tensor:
        """Return logits float32 (R, C) for features (R, F) or tokens (R, L, D), with -inf for classes that train lacks.

        Raises:
            StjepaError: The features have another shape.
        """
        num_axes, width = (2 if self.kind == "linear" else 3), len(self.mean)
        if features.ndim != num_axes or features.shape[-1] != width:
            expected = f"(R, {width})" if self.kind == "linear" else f"(R, L, {width})"
            raise StjepaError(f"a head of kind {self.kind} cannot take these features", got=tuple(features.shape), expected=expected)
        found = self._linear(features) if self.kind == "linear" else self._attentive(features)
        logits = torch.full((len(features), self.num_classes), -torch.inf, device=found.device)
        logits[:, self.labels] = found
        return logits

    def predict(self, features: Tensor) -> Tensor:
        """Return class probabilities: (C,) for one video with features (F,) or tokens (L, D), and (R, C) for R videos."""
        if features.ndim == (1 if self.kind == "linear" else 2):
            return self.logits(features[None]).softmax(dim=1)[0]
        return self.logits(features).softmax(dim=1)

    def _linear(self, features: Tensor) -> Tensor:
        x = (features.to(self.mean) - self.mean) / self.std
        return torch.addmm(self.weights["bias"], x, self.weights["weight"].T)

    @torch.no_grad()
    def _attentive(self, tokens: Tensor) -> Tensor:
        stacked = {name: weight[None] for name, weight in self.weights.items()}
        parts = []
        for part in torch.split(tokens, rows_at_once(stacked, tokens.shape[1])):
            with autocast(self.mean.device):
                parts.append(pooled_logits(stacked, (part.to(self.mean) - self.mean) / self.std)[0].float())
        return torch.cat(parts)


def save_head(path: Path, head: Head) -> None:
    """Write a head to a safetensors file, atomically.

    Raises:
        StjepaError: The head has no card or a card with another number of classes, or the disk cannot be written.
    """
    if head.card is None or len(head.card.classes) != head.num_classes:
        got = "no card" if head.card is None else f"{len(head.card.classes)} names"
        raise StjepaError("a head is saved with the names of its classes", got=got, expected=f"{head.num_classes} names")
    tensors = {"mean": head.mean, "std": head.std, "labels": head.labels} | {f"weights.{name}": w for name, w in head.weights.items()}
    write_tensors(path, tensors, {_KEY: json.dumps(to_dict(_Header(head.kind, head.card)), sort_keys=True)})


def load_head(path: Path, encoder: str, encoder_digest: str) -> Head:
    """Read a head and check that it was fitted on an encoder.

    Args:
        path: A file that `save_head` wrote.
        encoder: Name of the encoder, for the error message.
        encoder_digest: Digest of the encoder.

    Raises:
        CheckpointError: The file is missing, truncated or not a head, or it was fitted on another encoder; the message names both.
    """
    header = _read_header(path)
    card = header.card
    if card.encoder_digest != encoder_digest:
        raise CheckpointError(
            f"{path} was fitted on another encoder",
            got=f"{encoder} ({encoder_digest[:12]})",
            expected=f"{card.encoder} ({card.encoder_digest[:12]})",
            fix="Name that encoder, or type `stjepa infer ... --save-head` to fit a head on this one.",
        )
    tensors = read_tensors(path)
    missing = {"mean", "std", "labels"} - set(tensors)
    if missing or header.kind not in KINDS or header.schema != SCHEMA:
        raise CheckpointError(f"{path} is no head that this version reads", got=f"{header.kind}, schema {header.schema}, without {missing}")
    head = Head(header.kind, read_tensors(path, "weights"), tensors["mean"], tensors["std"], tensors["labels"], len(card.classes), card)
    _check(head, path)
    return head


def _check(head: Head, path: Path) -> None:
    """Raise a CheckpointError if the parts of a head do not fit each other."""
    found = {name: tuple(tensor.shape) for name, tensor in head.weights.items()} | {"std": tuple(head.std.shape)}
    width, num_labels = len(head.mean), len(head.labels)
    if head.kind == "linear":
        wanted = {"weight": (num_labels, width), "bias": (num_labels,)}
    else:
        blank = initial_weights(width, num_labels, num_self_blocks(head.weights), torch.Generator())
        wanted = {name: tuple(tensor.shape) for name, tensor in blank.items()}
    wanted["std"] = (width,)
    odd = [name for name in sorted(found.keys() | wanted.keys()) if found.get(name) != wanted.get(name)]
    if odd:
        raise CheckpointError(
            f"{path} is a damaged head: {odd[0]}", got=found.get(odd[0], "none"), expected=wanted.get(odd[0], "none"), fix=_MAKE
        )
    if num_labels and not 0 <= int(head.labels.min()) <= int(head.labels.max()) < head.num_classes:
        raise CheckpointError(
            f"{path} is a damaged head", got=f"label {int(head.labels.max())}", expected=f"0 to {head.num_classes - 1}", fix=_MAKE
        )
    if not all(bool(tensor.isfinite().all()) for tensor in (head.mean, head.std, *head.weights.values())):
        raise CheckpointError(f"{path} is a damaged head", got="a weight that is not finite", fix=_MAKE)


def read_card(path: Path) -> HeadCard:
    """Read the card of a saved head, without loading a tensor.

    Raises:
        CheckpointError: The file is missing, truncated, or not a head.
    """
    return _read_header(path).card


def _read_header(path: Path) -> _Header:
    if not path.exists():
        raise CheckpointError(f"there is no saved head {path}", fix=_MAKE)
    try:
        text = read_metadata(path).get(_KEY)
    except CheckpointError as error:
        raise CheckpointError(error.what, got=error.got, fix=_MAKE) from error
    if text is None:
        raise CheckpointError(f"{path} is a safetensors file but not a head", fix=_MAKE)
    try:
        return from_dict(_Header, json.loads(text), where=f"the header of {path}")
    except (ConfigError, json.JSONDecodeError) as error:
        raise CheckpointError(f"the header of {path} cannot be understood", got=str(error)) from error
