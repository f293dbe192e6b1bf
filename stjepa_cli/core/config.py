"""One frozen, typed description of a run: defaults written once here, unknown keys refused, saved as TOML."""

from __future__ import annotations

import json
import os
import tomllib
import types
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from stjepa_cli.core.errors import ConfigError, storage_errors
from stjepa_cli.core.locations import Location, is_location, location

DEFAULT_TEACHER = "MCG-NJU/videomae-huge-finetuned-kinetics"
LATENT_DIM = 384

T = TypeVar("T")


def _check(condition: bool, what: str, *, got: object, expected: object = None) -> None:
    if not condition:
        raise ConfigError(what, got=got, expected=expected)


def _one_of(value: str, known: tuple[str, ...], what: str) -> None:
    _check(value in known, f"unknown {what}", got=repr(value), expected="one of " + ", ".join(known))


@dataclass(frozen=True)
class StudentConfig:
    """Sizes of the student: `num_factorized` blocks of attention over time then space, then `num_joint` over all tokens."""

    dim: int = 384
    num_factorized: int = 8
    num_joint: int = 4
    num_heads: int = 6
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        _check(self.num_factorized + self.num_joint >= 1, "a student needs a block", got="0 + 0")
        _check(self.dim % self.num_heads == 0 and self.dim % 2 == 0, "student dim must be even and a multiple of its heads", got=self.dim)


@dataclass(frozen=True)
class PredictorConfig:
    """Sizes of the predictor, which is trained beside the student and is no part of the released encoder.

    Attributes:
        position_scale: amplitude of the sines and cosines that tell tokens apart; a narrow predictor of one block learns
            sooner when they do not drown what the student says.
    """

    dim: int = 192
    depth: int = 4
    num_heads: int = 6
    position_scale: float = 1.0

    def __post_init__(self) -> None:
        _check(self.depth >= 1, "a predictor needs a block", got=self.depth)
        _check(self.dim % self.num_heads == 0 and self.dim % 2 == 0, "predictor dim must be even and a multiple of its heads", got=self.dim)


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW or Muon with linear warm-up, cosine decay and gradient clipping; norms and biases are never decayed.

    Attributes:
        name: `adamw`, or `muon` for the matrices of the blocks and AdamW for the rest.
        lr: peak learning rate at `lr_batch` clips a step.
        lr_batch: the batch that `lr` is meant for.
        lr_scaling: how the rate follows the batch: `sqrt` (suits adaptive optimizers, arXiv 2205.10287), `linear` or `none`.
        weight_decay: at the first step.
        final_weight_decay: at the last, reached along a cosine (DINO, arXiv 2104.14294); None keeps it as it is.
        warmup: share of all steps in which the rate rises from 0.
        final_lr: share of the peak at the last step.
        clip_norm: gradients are scaled down to this norm.
    """

    name: str = "adamw"
    lr: float = 6e-4
    lr_batch: int = 64
    lr_scaling: str = "sqrt"
    weight_decay: float = 0.05
    final_weight_decay: float | None = None
    beta1: float = 0.9
    beta2: float = 0.95
    warmup: float = 0.1
    final_lr: float = 0.01
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        _one_of(self.name, ("adamw", "muon"), "optimizer")
        _one_of(self.lr_scaling, ("sqrt", "linear", "none"), "lr_scaling")
        _check(self.lr > 0, "lr must be positive", got=self.lr)
        _check(self.lr_batch >= 1, "lr_batch must be at least 1", got=self.lr_batch)
        _check(0 <= self.warmup < 1, "warmup is a share of all steps", got=self.warmup, expected="0 <= warmup < 1")
        _check(self.clip_norm > 0, "clip_norm must be positive", got=self.clip_norm)

    def peak_lr(self, batch_size: int) -> float:
        """The peak rate at a batch of so many clips."""
        power = {"sqrt": 0.5, "linear": 1.0, "none": 0.0}[self.lr_scaling]
        return self.lr * float((batch_size / self.lr_batch) ** power)


PRESETS: dict[str, tuple[StudentConfig, PredictorConfig]] = {
    "base": (StudentConfig(), PredictorConfig()),
    "small": (StudentConfig(dim=192, num_factorized=8, num_joint=4, num_heads=3), PredictorConfig(dim=96, depth=4, num_heads=3)),
    "tiny": (
        StudentConfig(dim=96, num_factorized=2, num_joint=2, num_heads=4),
        PredictorConfig(dim=64, depth=1, num_heads=4, position_scale=0.1),
    ),
}


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a pretraining run; `run.toml` is this.

    Attributes:
        data_root: the data set whose videos the cache was built from, a folder or a URL.
        cache: the latent cache, likewise.
        batch_size: clips a step, over all processes and micro-batches together.
        accumulate: micro-batches that each process splits its share of a step into, to save memory.
        mask_ratio: share of the spatial positions whose tubes are hidden, 0 to 1.
        mask_sampler: `tube` hides scattered positions, `multiblock` rectangles (V-JEPA, arXiv 2404.08471).
        masks_per_clip: masks that each decoded clip is seen under; the second costs no decoding.
        loss: between predicted and cached latents: `cosine`, `smooth_l1` or `l1`.
        visible_weight: weight of the same loss on visible tokens; 0 for none.
        ema: decay of the moving average of the student that is released (arXiv 2307.13813); 0 for none.
        val_share: share of the clips, at most 512 of them, that are held out for the validation loss of every epoch.
        max_steps: stop there, None for the whole of `epochs`.
        workers: threads that decode videos or frames.
        memory_gb: decoded clips are kept in memory up to so many gigabytes, so that small sets are decoded once.
        compile: `auto` compiles the blocks on a GPU, `on` everywhere, `off` nowhere.
        recompute: compute activations again in the backward pass instead of keeping them: less memory, a third more time.
        checkpoint_every: `500` for steps or `30m` for minutes, besides the end of every epoch; empty for nothing more.
        keep: newest checkpoints that stay, and the best one; 0 keeps all.
        tensorboard: write events for TensorBoard too.
    """

    data_root: Location
    cache: Location
    checkpoints: Path = Path("checkpoints")
    objective: str = "latent"
    preset: str = "base"
    epochs: int = 4
    batch_size: int = 64
    accumulate: int = 1
    mask_ratio: float = 0.75
    mask_sampler: str = "tube"
    masks_per_clip: int = 1
    loss: str = "cosine"
    visible_weight: float = 0.0
    ema: float = 0.999
    val_share: float = 0.02
    max_steps: int | None = None
    seed: int = 0
    device: str = "auto"
    workers: int = 4
    memory_gb: float = 2.0
    compile: str = "auto"
    recompute: bool = False
    checkpoint_every: str = ""
    keep: int = 0
    tensorboard: bool = False
    student: StudentConfig = field(default_factory=StudentConfig)
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "masks_per_clip", "workers"):
            _check(getattr(self, name) >= 1, f"{name} must be at least 1", got=getattr(self, name))
        _check(0 < self.mask_ratio < 1, "mask_ratio is a share", got=self.mask_ratio, expected="0 < mask_ratio < 1")
        _check(self.max_steps is None or self.max_steps >= 1, "max_steps must be at least 1", got=self.max_steps)
        _check(self.memory_gb >= 0, "memory_gb cannot be negative", got=self.memory_gb)
        _check(self.visible_weight >= 0, "visible_weight cannot be negative", got=self.visible_weight)
        _check(0 <= self.ema < 1, "ema is a decay", got=self.ema, expected="0 <= ema < 1")
        _check(0 <= self.val_share < 1, "val_share is a share", got=self.val_share, expected="0 <= val_share < 1")
        _check(self.keep >= 0, "keep cannot be negative", got=self.keep)
        _one_of(self.mask_sampler, ("tube", "multiblock"), "mask_sampler")
        _one_of(self.loss, ("cosine", "smooth_l1", "l1"), "loss")
        _one_of(self.compile, ("auto", "on", "off"), "compile")
        self.checkpoint_interval()

    def checkpoint_interval(self) -> tuple[int, float]:
        """Steps and seconds between checkpoints, 0 where not asked for.

        Raises:
            ConfigError: `checkpoint_every` is neither steps nor minutes.
        """
        text = self.checkpoint_every.strip().lower()
        number = text.removesuffix("in").removesuffix("m")
        valid = not text or (number.isdecimal() and int(number) > 0)
        _check(valid, "checkpoint_every is steps or minutes", got=repr(self.checkpoint_every), expected="500 or 30m, say")
        if not text:
            return 0, 0.0
        return (int(number), 0.0) if text.isdecimal() else (0, 60.0 * int(number))


def resolve_run(places: Mapping[str, Any], *, file: Path | None = None, flags: Mapping[str, Any] | None = None) -> RunConfig:
    """The run that default places, a TOML file and flags describe together; flags win over the file, the file over defaults.

    Args:
        places: default values of `data_root`, `cache` and `checkpoints`.
        file: a `run.toml`; unknown keys are refused.
        flags: what was given on the command line; None values count as not given. `lr`, `weight_decay` and
            `optimizer` (its name) go to the optimizer's table.

    Raises:
        ConfigError: an unknown key, a wrong type or value, or a file that is no TOML.
    """
    data = dict(places) | (read_toml(file) if file else {})
    given = {key: value for key, value in (flags or {}).items() if value is not None}
    optimizer = _section(data, "optimizer")
    for flag, key in (("lr", "lr"), ("weight_decay", "weight_decay"), ("optimizer", "name")):
        if flag in given:
            optimizer[key] = given.pop(flag)
    if "preset" in given:  # a preset on the command line replaces the sizes that a file gives
        data = {key: value for key, value in data.items() if key not in ("student", "predictor")}
    data |= given
    preset = data.get("preset", RunConfig.preset)
    if preset not in PRESETS:
        raise ConfigError("unknown preset", got=repr(preset), expected="one of " + ", ".join(PRESETS))
    student, predictor = PRESETS[preset]
    data["student"] = asdict(student) | _section(data, "student")
    data["predictor"] = asdict(predictor) | _section(data, "predictor")
    data["optimizer"] = optimizer
    return from_dict(RunConfig, data, where=str(file) if file else "the run")


def _section(data: Mapping[str, Any], name: str) -> dict[str, Any]:
    part = data.get(name, {})
    if not isinstance(part, Mapping):
        raise ConfigError(f"{name} has a wrong type", got=repr(part), expected=f"a table, [{name}]")
    return dict(part)


def place(flag: Location | str | None, variable: str, default: Location | str) -> Location:
    """A folder or URL: the flag if given, else the environment variable, else the default.

    Raises:
        ConfigError: a URL of an unknown protocol.
        NotReadyError: a URL whose driver is not installed.
    """
    return location(flag if flag is not None else os.environ.get(variable) or default)


def dataset_root(name: str, flag: Location | str | None = None) -> Location:
    """Where a data set lies: `STJEPA_<NAME>`, or below /mnt."""
    return place(flag, f"STJEPA_{name.upper()}", f"/mnt/{name}")


def ssv2_root(flag: Location | str | None = None) -> Location:
    """Where Something-Something v2 lies."""
    return place(flag, "STJEPA_SSV2", "/mnt/ssv2")


def ucf101_root(flag: Location | str | None = None) -> Location:
    """Where UCF-101 lies."""
    return place(flag, "STJEPA_UCF101", "/mnt/ucf101")


def cache_path(flag: Location | str | None, data_root: Location) -> Location:
    """Where the latent cache of `data_root` lies."""
    return place(flag, "STJEPA_CACHE", data_root / "cache_videomae_huge_384")


def checkpoints_dir(flag: Path | None = None) -> Path:
    """Where checkpoints are written and looked for."""
    return flag if flag is not None else Path(os.environ.get("STJEPA_CHECKPOINTS") or "checkpoints")


def features_dir(flag: Path | None = None) -> Path:
    """Where features of data sets are kept."""
    return flag if flag is not None else Path(os.environ.get("STJEPA_FEATURES") or Path.home() / ".cache" / "stjepa" / "features")


def to_dict(value: Any) -> dict[str, Any]:
    """A dataclass as plain JSON-able values; paths and URLs as text, tuples as lists, None left out."""
    return {name: _plain(part) for name, part in asdict(value).items() if part is not None}


def from_dict(cls: type[T], data: Mapping[str, Any], *, where: str) -> T:
    """The dataclass `cls` from plain values, checked field by field.

    Raises:
        ConfigError: a key that `cls` does not have, one that is missing, or a value of another type.
    """
    hints = get_type_hints(cls)
    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise ConfigError(f"{where} has an unknown key", got=", ".join(unknown), expected="one of " + ", ".join(known))
    try:
        return cls(**{name: _typed(hints[name], value, f"{where}: {name}") for name, value in data.items()})
    except TypeError as error:
        raise ConfigError(f"{where} is incomplete", got=str(error).replace("__init__() ", "")) from error


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        ConfigError: no such file, or no TOML.
    """
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError as error:
        raise ConfigError("there is no such configuration file", got=path) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path} cannot be read as TOML", got=str(error)) from error


def write_toml(path: Path, value: Any) -> None:
    """Write a dataclass as TOML, sections for the dataclasses inside it."""
    data = to_dict(value)
    lines = [f"{name} = {_toml(part)}" for name, part in data.items() if not isinstance(part, dict)]
    for section, part in data.items():
        if isinstance(part, dict):
            lines += ["", f"[{section}]"] + [f"{name} = {_toml(item)}" for name, item in part.items()]
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if is_location(value) else value


def _toml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)  # strings, numbers, booleans and lists are written alike in both


def _typed(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type that `hint` names, or a ConfigError."""
    if get_origin(hint) in (Union, types.UnionType):
        options = [option for option in get_args(hint) if option is not type(None)]
        return None if value is None else _typed(options[0], value, where)
    if get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where} has a wrong type", got=repr(value), expected="a list")
        return tuple(_typed(get_args(hint)[0], item, where) for item in value)
    if get_origin(hint) is dict:
        return dict(value)
    if is_dataclass(hint):
        if type(value) is hint:
            return value
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} has a wrong type", got=repr(value), expected="a table")
        return from_dict(hint, value, where=where)  # type: ignore[arg-type]
    if hint is Location and (isinstance(value, str) or is_location(value)):
        return location(value)
    if hint is Path and isinstance(value, (str, Path)):
        return Path(value)
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hint is Any or (isinstance(value, hint) and not (isinstance(value, bool) and hint is not bool)):
        return value
    raise ConfigError(f"{where} has a wrong type", got=repr(value), expected=hint.__name__)
