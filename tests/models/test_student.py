"""Student and predictor: shapes, what they may see, what they cost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from stjepa_cli.core.config import PRESETS, PredictorConfig, StudentConfig
from stjepa_cli.core.errors import CheckpointError, MaskError
from stjepa_cli.core.types import ClipSpec, TokenGrid
from stjepa_cli.models.layers import FactorizedBlock, JointBlock, sincos_positions, tubelets
from stjepa_cli.models.masking import Mask, tube_mask
from stjepa_cli.models.predictor import Predictor
from stjepa_cli.models.student import Student, num_parameters
from stjepa_cli.models.tensor_file import load_group, write_tensors

SPEC = ClipSpec(num_frames=4, size_px=32, tubelet=2, patch_px=8)
CONFIG = StudentConfig(dim=48, num_factorized=2, num_joint=1, num_heads=2)
PREDICTOR = PredictorConfig(dim=24, depth=2, num_heads=2)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _clips(batch_size: int = 3, spec: ClipSpec = SPEC, seed: int = 0) -> torch.Tensor:
    shape = (batch_size, spec.num_frames, 3, spec.size_px, spec.size_px)
    return torch.randint(0, 256, shape, generator=_generator(seed), dtype=torch.uint8)


def _mask(batch_size: int = 3, ratio: float = 0.5) -> Mask:
    return tube_mask(SPEC.grid, batch_size, ratio, _generator(1))


@pytest.fixture
def student() -> Student:
    return Student(CONFIG, SPEC, _generator()).eval()


@pytest.fixture
def predictor() -> Predictor:
    return Predictor(PREDICTOR, SPEC.grid, CONFIG.dim, 20, _generator()).eval()


def test_shapes_with_and_without_a_mask(student: Student, predictor: Predictor) -> None:
    mask = _mask()
    context = student(_clips(), mask)
    assert student(_clips()).shape == (3, SPEC.grid.num_tokens, 48)
    assert context.shape == (3, mask.visible.shape[1], 48)
    assert predictor(context, mask).shape == (3, mask.predict.shape[1], 20)


def test_pixels_under_hidden_tubes_do_not_change_predictions(student: Student, predictor: Predictor) -> None:
    clips, mask = _clips(), _mask()
    before = predictor(student(clips, mask), mask)
    patched = tubelets(clips, SPEC)
    other = tubelets(_clips(seed=9), SPEC)
    for b in range(3):
        patched[b, mask.predict[b]] = other[b, mask.predict[b]]
    changed = _from_tubelets(patched)
    assert (changed != clips).float().mean() > 0.4
    assert torch.equal(predictor(student(changed, mask), mask), before)


def test_pixels_of_visible_tubes_do_change_predictions(student: Student, predictor: Predictor) -> None:
    clips, mask = _clips(), _mask()
    patched = tubelets(clips, SPEC)
    patched[:, mask.visible[0]] = 0
    assert not torch.allclose(predictor(student(_from_tubelets(patched), mask), mask), predictor(student(clips, mask), mask))


def _from_tubelets(patches: torch.Tensor) -> torch.Tensor:
    grid, p = SPEC.grid, SPEC.patch_px
    x = patches.view(-1, grid.t, grid.h, grid.w, SPEC.tubelet, p, p, 3).permute(0, 1, 4, 7, 2, 5, 3, 6)
    return x.reshape(-1, SPEC.num_frames, 3, SPEC.size_px, SPEC.size_px)


def test_tubelets_lie_in_time_row_column_order() -> None:
    clips = torch.zeros(1, 4, 3, 32, 32, dtype=torch.uint8)
    clips[0, 2:4, :, 8:16, 24:32] = 1  # t = 1, h = 1, w = 3
    lit = tubelets(clips, SPEC)[0].float().mean(dim=1).nonzero().flatten().tolist()
    assert lit == [1 * 16 + 1 * 4 + 3]
    assert torch.equal(_from_tubelets(tubelets(_clips(), SPEC)), _clips())


def test_factorized_blocks_refuse_a_mask_that_is_not_made_of_tubes(student: Student) -> None:
    with pytest.raises(MaskError, match="regular grid"):
        student(_clips(), replace(_mask(), is_tube=False))
    joint_only = Student(replace(CONFIG, num_factorized=0), SPEC, _generator())
    assert joint_only(_clips(), replace(_mask(), is_tube=False)).shape[1] == _mask().visible.shape[1]


@pytest.mark.parametrize(("silenced", "reached"), [("space_attention", "its position"), ("time_attention", "its time")])
@torch.no_grad()
def test_a_factorized_block_looks_along_time_and_along_space_only(silenced: str, reached: str) -> None:
    block = FactorizedBlock(16, 2, 2.0).eval()
    for parameter in [*getattr(block, silenced).proj.parameters(), *block.mlp[-1].parameters()]:
        torch.nn.init.zeros_(parameter)
    x = torch.randn(1, 3, 5, 16, generator=_generator())
    poked = x.clone()
    poked[0, 1, 2] = torch.randn(16, generator=_generator(1))
    changed = (block(poked) - block(x))[0].abs().amax(dim=-1) > 1e-6  # (t, k)
    expected = torch.zeros(3, 5, dtype=torch.bool)
    if reached == "its position":
        expected[:, 2] = True
    else:
        expected[1] = True
    assert torch.equal(changed, expected)


def test_a_joint_block_equals_the_same_arithmetic_by_hand() -> None:
    block = JointBlock(16, 2, 4.0).eval()
    x = torch.randn(2, 7, 16, generator=_generator())
    q, k, v = block.attention.qkv(block.norm(x)).chunk(3, dim=-1)
    heads = []
    for h in range(2):
        part = slice(8 * h, 8 * h + 8)
        heads.append((q[..., part] @ k[..., part].transpose(1, 2) / 8**0.5).softmax(-1) @ v[..., part])
    y = x + block.attention.proj(torch.cat(heads, dim=-1))
    assert torch.allclose(block(x), y + block.mlp(block.mlp_norm(y)), atol=1e-6)


def test_one_seed_gives_one_student() -> None:
    same = [Student(CONFIG, SPEC, _generator(7)).state_dict() for _ in range(2)]
    other = Student(CONFIG, SPEC, _generator(8)).state_dict()
    assert all(torch.equal(same[0][name], same[1][name]) for name in same[0])
    assert not torch.equal(same[0]["embed.weight"], other["embed.weight"])


def test_positions_tell_every_token_apart_and_need_no_parameters() -> None:
    positions = sincos_positions(TokenGrid(8, 14, 14), 384)
    assert positions.shape == (1568, 384)
    distances = torch.cdist(positions[::7], positions[::7]) + 10 * torch.eye(224)
    assert distances.min() > 0.1
    assert "positions" not in Student(CONFIG, SPEC, _generator()).state_dict()


@pytest.mark.parametrize("visible", [None, 8])
def test_flops_are_those_that_torch_counts(student: Student, predictor: Predictor, visible: int | None) -> None:
    mask = _mask(1) if visible else None
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # the counter does not know the CPU's kernel
        context = student(_clips(1), mask)
    assert counter.get_total_flops() == student.flops(context.shape[1] if visible else None)
    if mask is not None:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            predictor(context, mask)
        assert counter.get_total_flops() == predictor.flops(mask.visible.shape[1], mask.predict.shape[1])


def test_the_base_preset_is_384_wide_with_8_factorized_and_4_joint_blocks() -> None:
    config, _ = PRESETS["base"]
    student = Student(config, ClipSpec(), _generator())
    assert (config.dim, len(student.factorized), len(student.joint)) == (384, 8, 4)
    assert student.grid == TokenGrid(8, 14, 14)
    assert 26.5e6 < num_parameters(student) < 26.8e6


def test_loading_tensors_of_another_shape_names_the_first_that_differs(student: Student, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    other = Student(replace(CONFIG, dim=24), SPEC, _generator())
    write_tensors(path, {f"student.{name}": tensor for name, tensor in other.state_dict().items()}, {})
    with pytest.raises(CheckpointError, match=r"student\.embed\.bias: got \(24,\), expected \(48,\)"):
        load_group(student, path, "student")
