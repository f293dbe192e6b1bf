"""Heads start as what was there before, learn what a judge looks at, and keep the raw vectors where there is nothing to learn."""

from __future__ import annotations

import pytest
import torch

from stjepa_cli.core.errors import ConfigError
from stjepa_cli.judgements.fitting import Fitted, Items, learn, splits
from stjepa_cli.judgements.heads import KINDS, build, start_of
from stjepa_cli.judgements.losses import LOSSES
from stjepa_cli.judgements.questions import questions_of
from stjepa_cli.judgements.simulation import World, ask, make_world, true_agreement


def halves(seed: int, dim: int = 32) -> tuple[World, World]:
    """Items to be asked about, and items that no judge has ever seen."""
    whole = make_world(800, seed, dim=dim, signal=6)
    return tuple(World(whole.vectors[part], whole.truth[part], whole.names[part]) for part in (slice(400), slice(400, 800)))  # type: ignore[return-value]


def learned(world: World, num_answers: int, *, coin: bool = False, kind: str = "linear", loss: str = "listwise", seed: int = 0) -> Fitted:
    questions = questions_of(ask(world, num_answers, seed, coin=coin), {name: i for i, name in enumerate(world.names)})
    head = build(kind, start_of(world.vectors, world.vectors.shape[1]), torch.Generator().manual_seed(0))
    return learn(head, Items(world.vectors), questions, loss, seed=0)


def agreements(fitted: Fitted, world: World) -> tuple[float, float]:
    with torch.no_grad():
        return true_agreement(world, world.vectors, 1), true_agreement(world, fitted.head(world.vectors), 1)


def test_200_answers_beat_the_raw_vectors_on_new_items_and_800_do_so_by_more() -> None:
    known, new = halves(0)
    (raw, few), (_, many) = (agreements(learned(known, number), new) for number in (200, 800))
    assert few > raw
    assert many > max(few, raw + 0.015)


@pytest.mark.parametrize("num_answers", [0, 20, 50])
def test_a_coin_flipping_judge_does_no_harm(num_answers: int) -> None:
    for seed in range(3):
        known, new = halves(seed)
        fitted = learned(known, num_answers, coin=True, seed=seed)
        raw, head = agreements(fitted, new)
        assert abs(head - raw) <= 0.005


def test_below_twenty_held_out_questions_nothing_is_learned() -> None:
    known, new = halves(0)
    fitted = learned(known, 20)
    assert fitted.penalty is None
    raw, head = agreements(fitted, new)
    assert raw == head


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_learns(loss: str) -> None:
    known, new = halves(0)
    fitted = learned(known, 400, loss=loss)
    raw, head = agreements(fitted, new)
    assert fitted.penalty is not None
    assert head > raw


def test_an_mlp_learns() -> None:
    known, new = halves(0)
    raw, head = agreements(learned(known, 600, kind="mlp"), new)
    assert head > raw


def test_attention_learns_which_tokens_count() -> None:
    generator = torch.Generator().manual_seed(0)
    world = make_world(300, 0, dim=16, signal=6, nuisance=0.1)
    marker = torch.nn.functional.normalize(torch.randn(16, generator=generator), dim=0)
    noise = 4 * torch.randn(300, 3, 16, generator=generator)
    vectors = torch.cat([(world.vectors + 4 * marker)[:, None], noise], 1)
    questions = questions_of(ask(world, 600, 0), {name: i for i, name in enumerate(world.names)})
    items = Items(vectors, torch.ones(300, 4, dtype=torch.bool))
    fitted = learn(build("attention", torch.eye(16), generator), items, questions, "listwise", seed=0)
    with torch.no_grad():
        raw, head = (true_agreement(world, space, 1) for space in (items.means(), fitted.head(vectors, items.mask)))
    assert head > raw + 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_starts_as_what_was_there_before(kind: str) -> None:
    vectors = torch.randn(7, 5) if kind != "attention" else torch.randn(7, 3, 5)
    mask = None if kind != "attention" else torch.tensor([[True, True, False]] * 7)
    if mask is not None:
        vectors[:, 2] = 0
    head = build(kind, torch.eye(5), torch.Generator().manual_seed(0))
    torch.testing.assert_close(head(vectors, mask), Items(vectors, mask).means())
    assert head.distance().item() == 0


def test_a_narrower_head_starts_as_the_directions_that_hold_most() -> None:
    vectors = torch.randn(50, 8) * torch.tensor([5.0, 4, 3, 0.1, 0.1, 0.1, 0.1, 0.1])
    start = start_of(vectors, 3)
    torch.testing.assert_close(start @ start.T, torch.eye(3), atol=1e-5, rtol=0)
    assert float((vectors @ start.T).square().sum() / vectors.square().sum()) > 0.99
    for dim in (0, 9):
        with pytest.raises(ConfigError, match="cannot have this width"):
            start_of(vectors, dim)
    with pytest.raises(ConfigError, match="unknown kind"):
        build("deep", start, torch.Generator())


def test_splits_are_a_function_of_the_seed() -> None:
    first, again, other = (torch.stack(list(splits(100, seed))) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])


def test_each_of_two_heads_is_better_at_its_own_mode() -> None:
    known, new = halves(0)
    other = [World(each.vectors, each.vectors[:, :4], each.names) for each in (known, new)]
    modes = [(known, new), (other[0], other[1])]
    fitted = [learned(judged, 400) for judged, _ in modes]
    agreement = [[agreements(head, asked)[1] for _, asked in modes] for head in fitted]
    assert agreement[0][0] > agreement[1][0]
    assert agreement[1][1] > agreement[0][1]
