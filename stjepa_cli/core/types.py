"""Types that every room shares: clip geometry, token grid, reference to a clip's pixels, identity of a teacher.

Standard library only, so that every room can import them. Shapes: `T` frames, `S` pixels per side, `N = t*h*w` tokens in (t, h, w)
order.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from stjepa_cli.core.errors import ConfigError
from stjepa_cli.core.locations import Location

MAX_CLIP_PX, MAX_TOKENS = 2**28, 2**20
"""Most pixels and tokens of a clip: many times those of the largest clips that are in use, and less than what fills a memory by mistake."""


@dataclass(frozen=True)
class TokenGrid:
    """The grid (t, h, w) of space-time tokens of a clip.

    Attributes:
        t: Number of time steps.
        h: Number of rows.
        w: Number of columns.
    """

    t: int
    h: int
    w: int

    @property
    def num_tokens(self) -> int:
        """N = t * h * w."""
        return self.t * self.h * self.w

    @property
    def num_positions(self) -> int:
        """Number of spatial positions, h * w; each is a tube."""
        return self.h * self.w

    def __str__(self) -> str:
        return f"{self.t}x{self.h}x{self.w}"


@dataclass(frozen=True)
class ClipSpec:
    """How a clip is cut from a video and into tokens.

    Attributes:
        num_frames: Number of frames T in a clip.
        size_px: Side S of the square crop after resizing.
        tubelet: Number of frames in a token.
        patch_px: Side of a token in pixels.
        sampling: `uniform` takes the middle frame of T equal segments of the whole video (TSN, arXiv 1608.00859); `dense` takes T
            frames, `stride` apart, around the middle of the video, or
            spread over the video as by `uniform` if it is too short for that.
        stride: Distance in frames between sampled frames, for `dense`.
    """

    num_frames: int = 16
    size_px: int = 224
    tubelet: int = 2
    patch_px: int = 16
    sampling: str = "uniform"
    stride: int = 4

    def __post_init__(self) -> None:
        if self.sampling not in ("uniform", "dense"):
            raise ConfigError("unknown sampling", got=repr(self.sampling), expected="uniform or dense")
        if min(self.num_frames, self.size_px, self.tubelet, self.patch_px, self.stride) < 1:
            raise ConfigError("the sizes of a clip must be positive", got=str(self))
        if self.num_frames % self.tubelet or self.size_px % self.patch_px:
            raise ConfigError(
                "frames must be a multiple of the tubelet, and the size a multiple of the patch",
                got=f"{self.num_frames} frames by {self.tubelet}, {self.size_px} px by {self.patch_px}",
            )
        if self.num_frames * self.size_px**2 > MAX_CLIP_PX or self.grid.num_tokens > MAX_TOKENS or self.stride > MAX_CLIP_PX:
            expected = f"at most {MAX_CLIP_PX:,} pixels and {MAX_TOKENS:,} tokens"
            raise ConfigError("the sizes of a clip are out of range", got=str(self), expected=expected)

    @property
    def grid(self) -> TokenGrid:
        """The token grid of such a clip."""
        side = self.size_px // self.patch_px
        return TokenGrid(self.num_frames // self.tubelet, side, side)

    def frame_indices(self, num_source_frames: int) -> tuple[int, ...]:
        """Return the indices of the frames to sample from a video of `num_source_frames` frames (>= 1); short videos repeat frames.

        ```text
        uniform, 4 of 12:   . 1 .  . 4 .  . 7 .  . 10 .
        ```
        """
        room = num_source_frames - ((self.num_frames - 1) * self.stride + 1)
        if self.sampling == "uniform" or room < 0:
            return tuple((2 * i + 1) * num_source_frames // (2 * self.num_frames) for i in range(self.num_frames))
        return tuple(room // 2 + i * self.stride for i in range(self.num_frames))

    def __str__(self) -> str:
        return f"{self.num_frames} frames x {self.size_px} px, {self.sampling}, tubelet {self.tubelet}, patch {self.patch_px}"


@dataclass(frozen=True)
class CropBox:
    """A rectangle of a source frame, in pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class ClipRef:
    """A reference to a clip, enough to decode the same pixels again.

    Attributes:
        path: Video file, a local path or a URL.
        frame_indices: Indices of the T frames in presentation order.
        crop: Part of each frame that is resized to the clip's size.
        size_px: Side S of the clip.
    """

    path: Location
    frame_indices: tuple[int, ...]
    crop: CropBox
    size_px: int


@dataclass(frozen=True)
class TeacherCard:
    """Identity of the frozen model that computed a set of latents.

    Attributes:
        name: Id, folder name or built-in name that was asked for.
        kind: Plug-in that runs it (`videomae`, `hog`).
        revision: Commit of the hub snapshot, `local` for a folder, or the algorithm's version for a built-in.
        weights_digest: sha256 of the weights (or of the parameters of a built-in), 64 hex digits.
        licence: Licence as stated by the model card, `unknown` if it states none.
        dim: Width E of a token.
        clip: Clips that it takes.
        token_norm: `layernorm` if tokens are normalised before projection, `none` if they are used unchanged.
        settings_digest: sha256 of the settings that decide how the weights are applied (configuration, colour normalisation), 64 hex
            digits; empty for a built-in, whose `weights_digest` covers them.
        layers: Numbers of the blocks whose tokens are concatenated, counted from 1; `dim` and `token_norm` describe the result. None
            for the model's final tokens.
        saw_labels: `yes`, `no` or `unknown`: labels were used to train the weights, directly or through a teacher of its own. None in
            headers of earlier versions, which means unknown. It is information and no part of a cache's identity.
    """

    name: str
    kind: str
    revision: str
    weights_digest: str
    licence: str
    dim: int
    clip: ClipSpec
    token_norm: str = "layernorm"
    settings_digest: str = ""
    layers: tuple[int, ...] | None = None
    saw_labels: str | None = None


def digest(value: Any) -> str:
    """Return the sha256 of a JSON-able value or a dataclass, independent of key order, as 64 hex digits."""
    plain = asdict(value) if hasattr(value, "__dataclass_fields__") else value
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def software_versions() -> dict[str, str]:
    """Return the versions of the packages that decide stored numbers; packages that are not installed are left out."""
    found: dict[str, str] = {}
    for name in ("stjepa", "torch", "torchcodec", "transformers", "zarr"):
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
