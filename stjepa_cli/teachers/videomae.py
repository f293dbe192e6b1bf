"""VideoMAE (arXiv 2203.12602) through transformers: tokens of the last layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from stjepa_cli.devices import autocast
from stjepa_cli.errors import ConfigError, NotReadyError, TeacherError
from stjepa_cli.nouns import ClipSpec, TeacherCard
from stjepa_cli.teachers.base import ModelFiles, Outline, Teacher, kind_of, read_json

if TYPE_CHECKING:
    from transformers import VideoMAEModel

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

_DEFAULTS = {"num_frames": 16, "image_size": 224, "tubelet_size": 2, "patch_size": 16, "hidden_size": 768, "num_channels": 3}
_PROCESSORS = ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json")


class VideoMae(Teacher):
    """A VideoMAE encoder, pretrained or fine-tuned; heads and decoders in the checkpoint are left alone.

    One that was fine-tuned with mean pooling has no final norm, so its tokens are a raw residual stream: the projection
    normalises them (`token_norm`). On CUDA the matrix products run in bfloat16 and the residual stream stays float32.

    Args:
        card: which model it is.
        model: in evaluation mode, on `device`.
        mean: of each colour channel, in 0 to 1.
        std: likewise.
        device: where it computes.
    """

    model_types: ClassVar[tuple[str, ...]] = ("videomae",)
    known: ClassVar[Mapping[str, Outline]] = {
        "MCG-NJU/videomae-huge-finetuned-kinetics": Outline(ClipSpec(), 1280, "CC-BY-NC-4.0"),
    }

    def __init__(
        self, card: TeacherCard, model: VideoMAEModel, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
    ) -> None:
        super().__init__(card, device)
        self.model = model
        self.model.embeddings.register_forward_hook(lambda module, args, output: output.float())
        self.mean = torch.tensor(mean, device=device).view(3, 1, 1)
        self.std = torch.tensor(std, device=device).view(3, 1, 1)

    @classmethod
    def outline(cls, config: Mapping[str, Any], clip: ClipSpec | None) -> Outline:
        sizes = {name: _size(config, name) for name in _DEFAULTS}
        if sizes["num_channels"] != 3:
            raise TeacherError("a VideoMAE teacher sees colour", got=f"num_channels {sizes['num_channels']}", expected=3)
        try:
            own = ClipSpec(sizes["num_frames"], sizes["image_size"], sizes["tubelet_size"], sizes["patch_size"])
        except ConfigError as error:
            raise TeacherError(f"config.json: {error}") from error
        return Outline(own, sizes["hidden_size"])

    @classmethod
    def load(cls, files: ModelFiles | None, outline: Outline, device: torch.device) -> Self:
        if files is None:
            raise ValueError("a VideoMAE is loaded from files")
        card = TeacherCard(
            name=files.name,
            kind=kind_of(cls),
            revision=files.revision,
            weights_digest=files.weights_digest(),
            licence=outline.licence,
            dim=outline.dim,
            clip=outline.clip,
            token_norm="layernorm",
        )
        return cls(card, _load(files.folder).to(device), *_pixel_statistics(files.folder), device)

    def _encode(self, clips: Tensor) -> Tensor:
        pixels = (clips.float() / 255 - self.mean) / self.std
        with autocast(self.device):
            tokens: Tensor = self.model(pixel_values=pixels).last_hidden_state
        return tokens


def _load(folder: Path) -> VideoMAEModel:
    """The encoder in a folder, float32, in evaluation mode.

    Raises:
        TeacherError: weights that cannot be read or are not all there; transformers would draw those at random.
        NotReadyError: transformers is not installed.
    """
    try:
        from transformers import VideoMAEModel
    except ImportError as error:
        raise NotReadyError("transformers is not installed", fix="Type `pip install 'transformers>=5,<6'`, or use `hog`.") from error
    try:
        with _quiet():
            options = {"local_files_only": True, "dtype": torch.float32, "output_loading_info": True}
            model, found = VideoMAEModel.from_pretrained(folder, **options)
    except Exception as error:  # each weight format has its own errors, and some are not of any public type
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise TeacherError(f"the weights in {folder} cannot be loaded", got=reason, fix="Copy or fetch them again.") from error
    lacking = sorted(found["missing_keys"]) + sorted(str(key) for key in found["mismatched_keys"])
    if lacking:
        raise TeacherError(
            f"the weights in {folder} are not all there",
            got=f"{len(lacking)} tensors missing, first {lacking[0]}",
            expected="all tensors of the encoder that its config.json describes",
        )
    return model.eval().requires_grad_(False)


def _size(config: Mapping[str, Any], name: str) -> int:
    """A whole number of a configuration; a pair of equal ones counts as one."""
    value = config.get(name, _DEFAULTS[name])
    if isinstance(value, list) and len(set(value)) == 1:
        value = value[0]
    if not isinstance(value, int) or value < 1:
        raise TeacherError(f"config.json: {name} does not suit a VideoMAE teacher", got=value, expected="a positive whole number")
    return value


def _pixel_statistics(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of colours as the model's preprocessor says, else ImageNet's."""
    path = next((path for name in _PROCESSORS if (path := folder / name).is_file()), None)
    if path is None:
        return IMAGENET
    settings = read_json(path)
    settings = settings.get("video_processor", settings)
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


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars, reports or warnings of transformers while the block runs."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


plugin = VideoMae
