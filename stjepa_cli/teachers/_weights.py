"""Weights that transformers loads: all there, in float32, without a word on the terminal. Shared by the teachers that it runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stjepa_cli.core.errors import NotReadyError, TeacherError, how_to_install

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ENCODER = r"(^|\.)encoder\."
"""The names of an encoder's tensors in most checkpoints."""


def load_weights(name: str, folder: Path, *, part: str = "", encoder: str = ENCODER, zeros: str = "", **settings: Any) -> PreTrainedModel:
    """Load a model in float32 and evaluation mode.

    Args:
        name: Name of its class in transformers; heads and decoders that the class does not have stay in the files.
        folder: Folder of its files.
        part: Start of the names of the tensors that must be there; others may be missing.
        encoder: Regular expression of the names of which there must be none too many.
        zeros: End of the names of parameters that may be missing and are zero then.
        settings: Settings that replace those of `config.json`, or arguments of `from_pretrained`.

    Raises:
        TeacherError: The weights cannot be read, are not all there (transformers would fill those in at random), or hold
            more of the encoder than `config.json` describes (transformers would drop it).
        NotReadyError: transformers is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise NotReadyError("transformers is not installed", fix=how_to_install("transformers>=5,<6") + " Or use `hog`.") from error
    options = {"local_files_only": True, "dtype": torch.float32, "output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        with _quiet():
            model, found = getattr(transformers, name).from_pretrained(folder, **options, **settings)
    except Exception as error:  # each weight format has its own errors, and some are not of any public type
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise TeacherError(f"the weights in {folder} cannot be loaded", got=reason, fix="Copy or fetch them again.") from error
    for key in [key for key in found["missing_keys"] if zeros and key.endswith(zeros)]:
        model.get_parameter(key).data.zero_()
        found["missing_keys"].remove(key)
    _check_loaded(folder, found, part, encoder)
    return model.eval().requires_grad_(False)


@contextmanager
def recorded(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Record the output of each module while the block runs, in the order of `modules`; of a tuple the first part."""
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
    """Make the output of a module float32, whatever precision it computes in."""
    module.register_forward_hook(lambda module, args, output: output.float())


def _check_loaded(folder: Path, found: Mapping[str, Any], part: str, encoder: str) -> None:
    """Compare what transformers says of a load (its `loading_info`) with the encoder that `config.json` describes."""
    missing = sorted(key for key in found["missing_keys"] if key.startswith(part))
    reshaped = sorted(f"{key}, {tuple(got)} for {tuple(own)}" for key, got, own in found["mismatched_keys"] if key.startswith(part))
    surplus = sorted(key for key in found["unexpected_keys"] if re.search(encoder, key))
    lacking, more = "not all there", "more than its config.json describes"
    for tensors, how, what in ((missing, "missing", lacking), (reshaped, "of another shape", lacking), (surplus, "too many", more)):
        if tensors:
            raise TeacherError(
                f"the weights in {folder} are {what}",
                got=f"{len(tensors)} tensors {how}, first {tensors[0]}",
                expected="exactly the tensors of the encoder that its config.json describes",
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' bars and warnings while the block runs: the terminal is not the library's."""
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
