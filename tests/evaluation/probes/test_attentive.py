"""The attentive probes: what they learn beyond a linear probe, and that a grid fitted at once equals its settings one by one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from stjepa_cli.core.errors import StjepaError
from stjepa_cli.core.runtime import Runtime
from stjepa_cli.encoders.features import Features
from stjepa_cli.evaluation.probes import attentive, attentive_pool
from stjepa_cli.evaluation.probes._attention import (
    AttentiveProbeBase,
    AttentiveSettings,
    GridAdamW,
    Setting,
    choose,
    fit,
    token_standardisation,
)
from stjepa_cli.evaluation.probes._folds import group_splits
from stjepa_cli.evaluation.probes.linear import LinearProbe
from stjepa_cli.models.attentive import decays


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors of a few hundred numbers: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


CPU = Runtime("cpu")
FEW = (Setting(1e-3, 0.01), Setting(3e-3, 0.1))


def relation(num_rows: int, side: str, seed: int) -> Features:
    """Six tokens, two of them marked: the class is whether the values of these two agree, and their mean says nothing of it."""
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.zeros(num_rows, 6, 4)
    tokens[..., 0] = torch.randint(2, (num_rows, 6), generator=draw) * 2.0 - 1
    marked = torch.rand(num_rows, 6, generator=draw).argsort(dim=1)[:, :2]
    tokens[..., 1].scatter_(1, marked, 1.0)
    tokens[..., 2:] = 0.1 * torch.randn(num_rows, 6, 2, generator=draw)
    values = tokens[..., 0].gather(1, marked)
    return featured(tokens, (values[:, 0] == values[:, 1]).long(), side)


def featured(tokens: torch.Tensor, labels: torch.Tensor, side: str) -> Features:
    groups = tuple(f"{side}g{i // 4:03d}" for i in range(len(tokens)))
    return Features(tokens.float().mean(dim=1), labels, groups, tuple(f"{side}{i:04d}" for i in range(len(tokens))), tokens)


def small(num_rows: int = 60, *, side: str = "train", seed: int = 0) -> Features:
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_rows) % 3
    tokens = torch.randn(num_rows, 5, 8, generator=draw)
    tokens[:, 0, :3] += 3 * torch.nn.functional.one_hot(labels, 3)
    return featured(tokens, labels, side)


def probe(num_blocks: int, grid: tuple[Setting, ...] = FEW, **settings: int) -> AttentiveProbeBase:
    made = AttentiveProbeBase.__new__(attentive.AttentiveProbe)
    made.settings = AttentiveSettings(num_blocks=num_blocks, grid=grid, unchosen=FEW[0], **settings)
    return made


def test_a_relation_of_two_tokens_is_learnt_that_a_linear_probe_cannot() -> None:
    train, test = relation(512, "train", 0), relation(200, "test", 1)
    assert LinearProbe().fit_score(train, test, 2, seed=0).metrics["top1"] < 0.65
    result = probe(3, grid=(Setting(5e-3, 0.01),), min_steps=160, epochs=1).fit_score(train, test, 2, seed=0)
    assert result.metrics["top1"] > 0.9


@pytest.mark.slow
def test_a_small_train_set_is_fitted_for_enough_steps() -> None:
    train, test = relation(100, "train", 1), relation(400, "test", 2)
    grid = (Setting(3e-3, 0.01),)
    few = [probe(3, grid, min_steps=100).fit_score(train, test, 2, seed=seed).metrics["top1"] for seed in (0, 1)]
    default = [probe(3, grid).fit_score(train, test, 2, seed=seed).metrics["top1"] for seed in (0, 1)]
    assert max(few) < 0.9 < min(default)


@pytest.mark.parametrize("num_blocks", [0, 2])
def test_a_grid_in_one_pass_gives_what_each_setting_gives_alone(num_blocks: int) -> None:
    train, grid = small(), (Setting(1e-4, 0.8), Setting(3e-3, 0.01), Setting(1e-3, 0.1))
    settings = AttentiveSettings(num_blocks=num_blocks, grid=grid, unchosen=grid[0], batch_size=16, epochs=2, min_steps=1)
    together = fit(train, train.by_id(), grid, settings, 0, CPU).logits(train, train.by_id())
    for place, setting in enumerate(grid):
        alone = fit(train, train.by_id(), (setting,), settings, 0, CPU).logits(train, train.by_id())
        assert torch.allclose(together[place], alone[0], atol=1e-3)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


def test_adamw_with_rates_of_their_own_equals_torch() -> None:
    grid = (Setting(3e-3, 0.1), Setting(1e-2, 0.8))
    weights = {"out.weight": torch.randn(2, 3, 4), "out.bias": torch.randn(2, 4), "pool.query": torch.randn(2, 3)}
    peers = [{name: weight[i].clone().requires_grad_() for name, weight in weights.items()} for i in range(2)]
    peer_steps = [
        torch.optim.AdamW([{"params": [w], "weight_decay": s.weight_decay * decays(n)} for n, w in peer.items()], lr=s.lr)
        for s, peer in zip(grid, peers, strict=True)
    ]
    ours = GridAdamW(weights, grid)
    for _ in range(3):
        for name, weight in weights.items():
            weight.grad = torch.randn_like(weight)
            for i in range(2):
                peers[i][name].grad = weight.grad[i].clone()
        ours.step(1.0)
        for step in peer_steps:
            step.step()
    for name, weight in weights.items():
        assert torch.allclose(weight, torch.stack([peer[name] for peer in peers]), atol=1e-6), name


def test_the_setting_is_chosen_on_held_out_groups_and_fitted_again_on_all_of_train() -> None:
    train, test = small(80), small(30, side="test", seed=1)
    grid = (Setting(1e-6, 0.01), Setting(1e-2, 0.01))
    made = probe(0, grid, min_steps=100)
    result = made.fit_score(train, test, 3, seed=0)
    ((fit_rows, held_out),) = [*group_splits(train, 0)][:1]
    assert not {train.groups[i] for i in fit_rows.tolist()} & {train.groups[i] for i in held_out.tolist()}
    assert result.chosen["lr"] == 1e-2
    assert result.chosen["held_out_videos"] == len(held_out)
    assert result.chosen["held_out_top1"] > 0.6
    assert result.head is not None
    again = fit(train, train.by_id(), grid[1:], made.settings, 0, CPU).head(0, 3)
    assert test.tokens is not None
    assert torch.equal(result.head.predict(test.tokens), again.predict(test.tokens))


def test_nothing_is_chosen_with_a_single_group_or_a_single_setting() -> None:
    train = small(20)
    one_group = replace(train, groups=("g",) * 20)
    assert choose(one_group, probe(0).settings, 0, CPU) == (FEW[0], {"settings": 0.0, "folds": 0.0})
    assert choose(train, attentive_pool.plugin.settings, 0, CPU) == (Setting(1e-3, 0.01), {"settings": 1.0, "folds": 0.0})
    assert len(attentive.plugin.settings.grid) == 20


def test_a_head_that_diverges_is_not_chosen_and_spoils_no_other() -> None:
    train, grid = small(60), (Setting(1e30, 0.0), Setting(1e-2, 0.01))
    settings = probe(0, grid, min_steps=60).settings
    setting, choice = choose(train, settings, 0, CPU)
    assert setting == grid[1]
    assert choice["held_out_top1"] == choose(train, replace(settings, grid=(Setting(0.0, 0.0), grid[1])), 0, CPU)[1]["held_out_top1"]
    with pytest.raises(StjepaError, match="diverged at learning rate 1e\\+30"):
        probe(1, grid[:1], min_steps=5).fit_score(train, small(9, side="test"), 3, seed=0)


def test_half_precision_tokens_give_the_metrics_of_single_precision() -> None:
    train, test = small(), small(30, side="test", seed=1)
    half = [replace(side, tokens=side.tokens.half()) for side in (train, test) if side.tokens is not None]
    made = probe(0, FEW[1:], min_steps=50)
    assert made.fit_score(train, test, 3, seed=0).metrics == made.fit_score(half[0], half[1], 3, seed=0).metrics


def test_standardisation_of_tokens_equals_that_of_all_at_once() -> None:
    tokens = torch.randn(700, 3, 4) * 0.01 + 1000.0
    tokens[..., 3] = 5.0
    rows = torch.arange(650)
    mean, std = token_standardisation(tokens, rows)
    flat = tokens[:650].flatten(0, 1).double()
    assert torch.allclose(mean.double(), flat.mean(dim=0))
    assert torch.allclose(std[:3].double(), flat[:, :3].std(dim=0, correction=0), rtol=1e-4)
    assert std[3] == 1


def test_pooled_features_alone_are_refused() -> None:
    train = replace(small(), tokens=None)
    with pytest.raises(StjepaError, match="needs the tokens of train videos"):
        probe(0).fit_score(train, small(9, side="test"), 3, seed=0)
    test = small(9, side="test")
    assert test.tokens is not None
    with pytest.raises(StjepaError, match="train and test tokens differ in width: got 8 and 4"):
        probe(0).fit_score(small(), replace(test, tokens=test.tokens[..., :4]), 3, seed=0)
