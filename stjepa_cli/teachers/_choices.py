"""Check the clips and the layers that are asked of a teacher against those that it has."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from stjepa_cli.core.errors import TeacherError
from stjepa_cli.core.types import ClipSpec

_GEOMETRY = ("num_frames", "size_px", "tubelet", "patch_px")


def clips_taken(name: str, own: ClipSpec, asked: ClipSpec | None, flexible: Collection[str]) -> ClipSpec:
    """Return the clips that are asked for, or the model's own.

    Args:
        name: Name of the teacher.
        own: Clips that the model takes by default.
        asked: Clips that are asked for; sampling and stride are always free.
        flexible: Fields of the geometry in which clips may differ from the model's own.

    Raises:
        TeacherError: The model does not take clips of this geometry.
    """
    if asked is None:
        return own
    for field in _GEOMETRY:
        if field not in flexible and getattr(asked, field) != getattr(own, field):
            raise TeacherError(
                f"{name} takes clips of one geometry and {field} is another",
                got=getattr(asked, field),
                expected=getattr(own, field),
                fix="Leave the geometry to the model, or use `hog`, which takes any.",
            )
    return asked


def sampled_clips(clip: ClipSpec, sampling: str | None, stride: int | None) -> ClipSpec:
    """Return clips with another sampling or stride, where these are given.

    Raises:
        ConfigError: There is no such sampling, or the stride is below 1.
        TeacherError: A stride is given for clips that are not dense.
    """
    sampling = sampling or clip.sampling
    if stride is not None and sampling == "uniform":
        raise TeacherError("a stride is for dense sampling", got=f"stride {stride}", fix="Type `--sampling dense`.")
    return replace(clip, sampling=sampling, stride=clip.stride if stride is None else stride)


def layer_numbers(name: str, layers: Sequence[int], num_layers: int) -> tuple[int, ...]:
    """Return the numbers of blocks, 1 to their count, from numbers that may count from the end.

    Raises:
        TeacherError: There is no such block, none is asked for, or one twice.
    """
    numbers = tuple(layer if layer > 0 else num_layers + 1 + layer for layer in layers)
    wrong = [layer for layer, number in zip(layers, numbers, strict=True) if layer == 0 or not 1 <= number <= num_layers]
    if wrong or not numbers:
        expected = f"1 to {num_layers}, or -{num_layers} to -1" if num_layers > 1 else "1 or -1, its only layer"
        raise TeacherError(f"{name} has no such layer", got=wrong[0] if wrong else "none at all", expected=expected)
    if len(set(numbers)) < len(numbers):
        raise TeacherError("a layer is asked for twice", got=", ".join(map(str, layers)))
    return numbers
