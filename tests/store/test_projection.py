"""The map from a teacher's tokens to stored latents."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stjepa_cli.core.errors import ConfigError, TeacherError
from stjepa_cli.store.projection import Projection, ProjectionFit, default_kind, normalise


def _tokens(clips: int = 20, dim: int = 10) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    mixing = torch.randn(4, dim, generator=g)
    return torch.randn(clips, 8, 4, generator=g) @ mixing + 5 + 0.05 * torch.randn(clips, 8, dim, generator=g)


def _fitted(kind: str = "pca", out_dim: int = 4, token_norm: str = "none", pieces: int = 1) -> Projection:
    fit = ProjectionFit(10, token_norm)
    for part in _tokens().chunk(pieces):
        fit.add(part)
    return fit.finish(kind, out_dim)


def test_pca_spans_what_numpy_finds() -> None:
    projection = _fitted()
    x = _tokens().flatten(0, 1).numpy().astype(np.float64)
    _, singular, vectors = np.linalg.svd(x - x.mean(0), full_matrices=False)
    overlap = np.abs(vectors[:4] @ projection.matrix.numpy().T.astype(np.float64))
    assert np.allclose(overlap, np.eye(4), atol=1e-3)
    assert projection.explained == pytest.approx((singular[:4] ** 2).sum() / (singular**2).sum(), abs=1e-5)


@pytest.mark.parametrize("kind", ["pca", "random"])
def test_latents_are_centred_with_a_mean_square_of_one(kind: str) -> None:
    latents = _fitted(kind)(_tokens())
    assert latents.mean(dim=(0, 1)).abs().max() < 1e-4
    assert latents.square().mean().item() == pytest.approx(1, abs=1e-3)


def test_standardize_gives_every_channel_the_same_variance_and_keeps_the_channels() -> None:
    tokens = _tokens() * torch.linspace(0.01, 10, 10)
    fit = ProjectionFit(10, "none")
    fit.add(tokens)
    projection = fit.finish("standardize", 10)
    latents = projection(tokens)
    assert torch.allclose(latents.flatten(0, 1).var(0, correction=0), torch.ones(10), atol=1e-3)
    assert torch.equal(projection.matrix, projection.matrix.diag().diag())
    assert torch.allclose(projection.inverse(latents), tokens, atol=1e-3)


def test_standardize_to_another_width_is_pca_of_standardised_channels() -> None:
    tokens = _tokens() * torch.linspace(0.01, 10, 10)
    fit, other = ProjectionFit(10, "none"), ProjectionFit(10, "none")
    fit.add(tokens)
    x = tokens.flatten(0, 1).double()
    other.add(((tokens - x.mean(0)) / x.std(0, correction=0)).float())
    assert torch.allclose(
        fit.finish("standardize", 4)(tokens), other.finish("pca", 4)(((tokens - x.mean(0)) / x.std(0, correction=0)).float()), atol=1e-3
    )


def test_a_channel_that_never_changes_stays_at_zero() -> None:
    tokens = _tokens()
    tokens[..., 3] = 7.25
    fit = ProjectionFit(10, "none")
    fit.add(tokens)
    latents = fit.finish("standardize", 10)(tokens)
    assert latents.isfinite().all()
    assert latents[..., 3].abs().max() == 0


@pytest.mark.parametrize("out_dim", [4, 7, 10, 12, 16])
def test_phi_s_spreads_the_variance_evenly_and_loses_what_pca_loses(out_dim: int) -> None:
    tokens, projection, pca = _tokens(), _fitted("phi-s", out_dim), _fitted("pca", out_dim)
    latents = projection(tokens)
    variances = latents.double().flatten(0, 1).var(0, correction=0)
    assert torch.allclose(variances, torch.ones_like(variances), atol=1e-3)
    assert projection.explained == pytest.approx(pca.explained, abs=1e-9)
    assert torch.allclose(projection.inverse(latents), pca.inverse(pca(tokens)), atol=1e-3)
    if out_dim >= 10:
        assert torch.allclose(projection.inverse(latents), tokens, atol=1e-3)
        centred = tokens - projection.mean
        before = F.cosine_similarity(centred[0, :1], centred[0], dim=-1)
        assert torch.allclose(F.cosine_similarity(latents[0, :1], latents[0], dim=-1), before, atol=1e-4)


def test_batches_do_not_matter() -> None:
    one, many = _fitted(pieces=1), _fitted(pieces=7)
    assert torch.allclose(one.matrix, many.matrix, atol=1e-5)


def test_equal_widths_need_no_reduction_and_keep_angles() -> None:
    assert default_kind(384, 384) == "identity"
    assert default_kind(1280, 384) == default_kind(128, 384) == "pca"
    projection = _fitted("identity", 10)
    assert torch.equal(projection.matrix, torch.eye(10))
    assert projection.explained == pytest.approx(1)
    with pytest.raises(ConfigError, match="keeps the width"):
        _fitted("identity", 4)


@pytest.mark.parametrize("kind", ["pca", "random"])
def test_a_narrow_teacher_fills_the_first_channels_and_loses_nothing(kind: str) -> None:
    projection = _fitted(kind, 16)
    centred = _tokens() - projection.mean
    latents = projection(_tokens())
    assert latents.shape[-1] == 16
    assert latents[..., 10:].abs().max() == 0
    before = F.cosine_similarity(centred[0, :1], centred[0], dim=-1)
    assert torch.allclose(F.cosine_similarity(latents[0, :1], latents[0], dim=-1), before, atol=1e-4)


def test_layernorm_removes_a_large_common_component_that_the_mean_square_would_drown_in() -> None:
    tokens = _tokens()
    tokens[..., 0] *= 1000
    assert normalise(tokens, "layernorm").abs().max() < 4
    assert torch.equal(normalise(tokens, "none"), tokens)


def test_the_digest_tells_maps_apart_and_is_stable() -> None:
    assert _fitted().digest == _fitted().digest
    assert len({_fitted(kind).digest for kind in ("pca", "random")} | {_fitted(token_norm="layernorm").digest}) == 3


def test_tokens_that_are_not_finite_are_refused() -> None:
    with pytest.raises(TeacherError, match="not finite"):
        ProjectionFit(2, "none").add(torch.tensor([[[1.0, float("nan")]]]))


def test_an_unknown_kind_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="one of pca, random, identity"):
        _fitted("ica")
