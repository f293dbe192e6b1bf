"""Base class of the teachers that transformers runs: sizes from `config.json`, colours from the preprocessor."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from stjepa_cli.core.devices import autocast
from stjepa_cli.core.errors import ConfigError, TeacherError
from stjepa_cli.core.types import ClipSpec, TeacherCard, digest
from stjepa_cli.teachers._weights import recorded
from stjepa_cli.teachers.base import ModelFiles, Outline, Teacher, kind_of, read_json

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

_WITHOUT_EFFECT = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "id2label", "label2id", "problem_type")
"""Keys of `config.json` that do not change a token."""

_PROCESSORS = ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json")


class Pretrained(Teacher):
    """A frozen model of transformers; a subclass names its sizes, loads it and runs it.

    The decoder cuts and resizes clips, the same for teacher and student, so only colours are taken from the preprocessor.
    The projection normalises tokens (`token_norm`). On CUDA the matrix products run in bfloat16; a subclass keeps the
    residual stream in float32 with `in_float32`.

    Args:
        card: Identity of the model.
        model: The model in evaluation mode, on `device`.
        mean: Mean of each colour channel, 0 to 1.
        std: Standard deviation of each colour channel.
        device: Where it computes.
    """

    family: ClassVar[str]
    """The name that people use for such models."""

    sizes: ClassVar[Mapping[str, tuple[str, int]]]
    """Our names of sizes, with the name in `config.json` and the default; `dim`, `colours` and `num_layers` among them."""

    blocks: ClassVar[str]
    """The name of the list of blocks in the model."""

    def __init__(self, card: TeacherCard, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> None:
        super().__init__(card, device)
        self.model = model
        self.mean = torch.tensor(mean, device=device).view(3, 1, 1)
        self.std = torch.tensor(std, device=device).view(3, 1, 1)

    @classmethod
    def outline(cls, config: Mapping[str, Any], clip: ClipSpec | None) -> Outline:
        sizes = {ours: _size(config, theirs, default, cls.family) for ours, (theirs, default) in cls.sizes.items()}
        if (colours := sizes.pop("colours")) != 3:
            raise TeacherError(f"a {cls.family} teacher sees colour", got=f"{cls.sizes['colours'][0]} {colours}", expected=3)
        dim, num_layers = sizes.pop("dim"), sizes.pop("num_layers")
        try:
            return Outline(cls._own_clip(sizes, config), dim, num_layers=num_layers)
        except ConfigError as error:
            raise TeacherError(f"config.json: {error}") from error

    @classmethod
    def _own_clip(cls, sizes: Mapping[str, int], config: Mapping[str, Any]) -> ClipSpec:
        """Return the clips that a model takes by itself, from the sizes of its geometry."""
        return ClipSpec(**sizes)  # type: ignore[arg-type]

    @classmethod
    def load(cls, files: ModelFiles | None, outline: Outline, device: torch.device) -> Self:
        if files is None:
            raise ValueError(f"a {cls.family} is loaded from files")
        mean, std = _pixel_statistics(files.folder)
        config = {name: value for name, value in read_json(files.folder / "config.json").items() if name not in _WITHOUT_EFFECT}
        card = TeacherCard(
            name=files.name,
            kind=kind_of(cls),
            revision=files.revision,
            weights_digest=files.weights_digest(),
            licence=outline.licence,
            dim=outline.dim,
            clip=outline.clip,
            token_norm="layernorm",
            settings_digest=digest({"config": config, "mean": mean, "std": std} | cls._more_settings(files.folder)),
        )
        return cls(card, cls._load(files.folder, outline.clip).to(device), mean, std, device)

    @classmethod
    def _more_settings(cls, folder: Path) -> dict[str, object]:
        """Return further settings that change tokens, for the card's digest."""
        return {}

    @classmethod
    @abstractmethod
    def _load(cls, folder: Path, clip: ClipSpec) -> nn.Module:
        """Load the encoder in a folder, by `load_weights`."""

    @property
    def num_layers(self) -> int:
        return len(self._blocks)

    @property
    def _blocks(self) -> nn.ModuleList:
        blocks = self.model.get_submodule(self.blocks)
        assert isinstance(blocks, nn.ModuleList)
        return blocks

    def _encode(self, clips: Tensor) -> Tensor:
        pixels = (self._resized(clips.float() / 255) - self.mean) / self.std
        with autocast(self.device):
            return self._as_tokens(self._run(pixels), len(clips))

    def _encode_layers(self, clips: Tensor, layers: Sequence[int]) -> list[Tensor]:
        with recorded([self._blocks[layer - 1] for layer in layers]) as outputs:
            self._encode(clips)
        return [self._as_tokens(output, len(clips)) for output in outputs]

    def _resized(self, clips: Tensor) -> Tensor:
        """Return clips (B, T, 3, S, S), 0 to 1, at the size that the model takes."""
        return clips

    @abstractmethod
    def _run(self, pixels: Tensor) -> Tensor:
        """Run the model on normalised pixels (B, T, 3, S, S); the result goes through `_as_tokens`."""

    def _as_tokens(self, output: Tensor, num_clips: int) -> Tensor:
        """Turn the output of the model or of a block into the tokens (B, N, E) of `num_clips` clips."""
        return output


def _size(config: Mapping[str, Any], name: str, default: int, family: str) -> int:
    """Return a whole number of a configuration; a pair of equal ones counts as one."""
    value = config.get(name, default)
    if isinstance(value, list) and len(set(value)) == 1:
        value = value[0]
    if not isinstance(value, int) or value < 1:
        raise TeacherError(f"config.json: {name} does not suit a {family} teacher", got=value, expected="a positive whole number")
    return value


def processor_settings(folder: Path) -> tuple[Path | None, dict[str, Any]]:
    """Return the file of a model's preprocessor and its settings; none where there is no such file."""
    path = next((path for name in _PROCESSORS if (path := folder / name).is_file()), None)
    if path is None:
        return None, {}
    settings = read_json(path)
    nested = settings.get("video_processor")
    return path, nested if isinstance(nested, dict) else settings


def _pixel_statistics(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of colours as the model's preprocessor has them, else ImageNet's."""
    path, settings = processor_settings(folder)
    if settings.get("do_normalize") is False:
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    try:
        mean = tuple(float(value) for value in settings.get("image_mean", IMAGENET[0]))
        std = tuple(float(value) for value in settings.get("image_std", IMAGENET[1]))
    except (TypeError, ValueError) as error:
        raise TeacherError(f"{path}: image_mean and image_std must be numbers", got=error) from error
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise TeacherError(f"{path}: image_mean or image_std does not suit colour", got=f"{mean}, {std}", expected="3 numbers, std > 0")
    return mean, std
