"""What teachers that transformers runs have in common: sizes from `config.json`, weights all there, colours as trained."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from stjepa_cli.core.devices import autocast
from stjepa_cli.core.errors import ConfigError, NotReadyError, TeacherError
from stjepa_cli.core.types import ClipSpec, TeacherCard, digest
from stjepa_cli.teachers.base import ModelFiles, Outline, Teacher, kind_of, read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

_WITHOUT_EFFECT = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "id2label", "label2id", "problem_type")
"""What `config.json` says of the file and of its classes, and not of tokens."""

_PROCESSORS = ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json")


class Pretrained(Teacher):
    """A model of transformers, frozen; a subclass says what its sizes are called, how it is loaded and how it is run.

    Of the preprocessor only the colours are taken: crop and size are the decoder's, the same for teacher and student. The
    projection normalises tokens (`token_norm`). On CUDA the matrix products run in bfloat16; a subclass keeps the residual
    stream in float32 with `in_float32`.

    Args:
        card: which model it is.
        model: in evaluation mode, on `device`.
        mean: of each colour channel, in 0 to 1.
        std: likewise.
        device: where it computes.
    """

    family: ClassVar[str]
    """What people call such models."""

    sizes: ClassVar[Mapping[str, tuple[str, int]]]
    """The names in `config.json` of `num_frames`, `size_px`, `tubelet`, `patch_px`, `dim`, `colours` and `num_layers`, with defaults."""

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
            return Outline(ClipSpec(**sizes), dim, num_layers=num_layers)  # type: ignore[arg-type]
        except ConfigError as error:
            raise TeacherError(f"config.json: {error}") from error

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
            settings_digest=digest({"config": config, "mean": mean, "std": std}),
        )
        return cls(card, cls._load(files.folder, outline.clip).to(device), mean, std, device)

    @classmethod
    @abstractmethod
    def _load(cls, folder: Path, clip: ClipSpec) -> nn.Module:
        """The encoder in a folder, by `load_weights`."""

    @property
    def num_layers(self) -> int:
        return len(self._blocks)

    @property
    def _blocks(self) -> nn.ModuleList:
        blocks = self.model.get_submodule(self.blocks)
        assert isinstance(blocks, nn.ModuleList)
        return blocks

    def _encode(self, clips: Tensor) -> Tensor:
        pixels = (clips.float() / 255 - self.mean) / self.std
        with autocast(self.device):
            return self._run(pixels)

    def _encode_layers(self, clips: Tensor, layers: Sequence[int]) -> list[Tensor]:
        with recorded([self._blocks[layer - 1] for layer in layers]) as outputs:
            self._encode(clips)
        return outputs

    @abstractmethod
    def _run(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, T, 3, S, S) to tokens (B, N, E)."""


def load_weights(name: str, folder: Path, *, part: str = "", **settings: object) -> PreTrainedModel:
    """A model in float32 and evaluation mode.

    Args:
        name: of its class in transformers; heads and decoders that it does not have are left in the files.
        folder: where its files lie.
        part: the start of the names of the tensors that matter; others may be missing.
        settings: of its configuration, instead of those in `config.json`, or of `from_pretrained`.

    Raises:
        TeacherError: weights that cannot be read, are not all there (transformers would draw those at random) or hold more of
            an encoder than is described (transformers would drop it).
        NotReadyError: transformers is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise NotReadyError("transformers is not installed", fix="Type `pip install 'transformers>=5,<6'`, or use `hog`.") from error
    options = {"local_files_only": True, "dtype": torch.float32, "output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        with _quiet():
            model, found = getattr(transformers, name).from_pretrained(folder, **options, **settings)
    except Exception as error:  # each weight format has its own errors, and some are not of any public type
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise TeacherError(f"the weights in {folder} cannot be loaded", got=reason, fix="Copy or fetch them again.") from error
    _check_loaded(folder, found, part)
    return model.eval().requires_grad_(False)


def _check_loaded(folder: Path, found: Mapping[str, Any], part: str) -> None:
    """Hold what transformers says of a load (its `loading_info`) against the encoder that `config.json` describes."""
    missing = sorted(key for key in found["missing_keys"] if key.startswith(part))
    reshaped = sorted(f"{key}, {tuple(got)} for {tuple(own)}" for key, got, own in found["mismatched_keys"] if key.startswith(part))
    surplus = sorted(key for key in found["unexpected_keys"] if re.search(r"(^|\.)encoder\.", key))
    lacking, more = "not all there", "more than its config.json describes"
    for tensors, how, what in ((missing, "missing", lacking), (reshaped, "of another shape", lacking), (surplus, "too many", more)):
        if tensors:
            raise TeacherError(
                f"the weights in {folder} are {what}",
                got=f"{len(tensors)} tensors {how}, first {tensors[0]}",
                expected="exactly the tensors of the encoder that its config.json describes",
            )


@contextmanager
def recorded(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Record what each module gives when it runs in the block, in the order of `modules`; of a tuple its first part."""
    outputs: list[Tensor] = [torch.empty(0)] * len(modules)

    def record_at(place: int) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            outputs[place] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [module.register_forward_hook(record_at(place)) for place, module in enumerate(modules)]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def in_float32(module: nn.Module) -> None:
    """Make what a module gives float32, in whatever precision it computes."""
    module.register_forward_hook(lambda module, args, output: output.float())


def _size(config: Mapping[str, Any], name: str, default: int, family: str) -> int:
    """A whole number of a configuration; a pair of equal ones counts as one."""
    value = config.get(name, default)
    if isinstance(value, list) and len(set(value)) == 1:
        value = value[0]
    if not isinstance(value, int) or value < 1:
        raise TeacherError(f"config.json: {name} does not suit a {family} teacher", got=value, expected="a positive whole number")
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
