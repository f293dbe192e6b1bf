"""A simulated judge with a known truth, for tests and studies: items whose vectors are mostly about something else."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stjepa_cli.judgements.events import Event


@dataclass(frozen=True)
class World:
    """Items, as an encoder sees them and as the judge does.

    Attributes:
        vectors: float32 (N, D), what the encoder says: mostly nuisance.
        truth: float32 (N, S), what the judge looks at.
        names: Name of each item.
    """

    vectors: Tensor
    truth: Tensor
    names: tuple[str, ...]

    def judged(self, anchor: int, shown: list[int], noise: float, generator: torch.Generator) -> int:
        """Return which of the items shown a judge takes for most like the anchor: the cosine of the truth, and Gaussian noise."""
        truth = F.normalize(self.truth[[anchor, *shown]], dim=-1)
        scores = truth[1:] @ truth[0] + noise * torch.randn(len(shown), generator=generator)
        return shown[int(scores.argmax())]


def make_world(num_items: int, seed: int, *, dim: int = 64, signal: int = 8, nuisance: float = 1.0) -> World:
    """Draw items: `signal` directions that count, the others `nuisance` times as strong, mixed by a rotation.

    Args:
        num_items: Number of items N.
        seed: Seed; 0 and 1 are other worlds.
        dim: Width D of the vectors.
        signal: Number of directions S that count.
        nuisance: Spread of the other directions, on average, where those that count have a spread of 1.
    """
    generator = torch.Generator().manual_seed(seed)
    scales = torch.ones(dim)
    scales[signal:] = nuisance * torch.rand(dim - signal, generator=generator) ** 2 * 2
    hidden = torch.randn(num_items, dim, generator=generator) * scales
    rotation = torch.linalg.qr(torch.randn(dim, dim, generator=generator)).Q
    return World(hidden @ rotation, hidden[:, :signal].clone(), tuple(f"item{i:05d}" for i in range(num_items)))


def ask(
    world: World, num_answers: int, seed: int, *, shown: int = 8, noise: float = 0.1, coin: bool = False, mode: str = "trick"
) -> list[Event]:
    """Let a judge answer questions about random items.

    Args:
        world: The items.
        num_answers: Number of questions.
        seed: Seed of questions and answers.
        shown: Candidates per question.
        noise: Spread of the judge's errors, in units of the cosine.
        coin: Whether the judge does not look, and chooses at random.
        mode: Mode of the events.
    """
    lottery, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    events = []
    for number in range(num_answers):
        anchor, *others = lottery.sample(range(len(world.names)), shown + 1)
        chosen = lottery.choice(others) if coin else world.judged(anchor, others, noise, generator)
        anchor_name, names, chosen_name = world.names[anchor], tuple(world.names[each] for each in others), world.names[chosen]
        event_id = f"{seed}-{number:06d}"
        events.append(Event(event_id, "simulated", "simulated", mode, anchor_name, names, selected=(chosen_name,)))
    return events


def true_agreement(world: World, vectors: Tensor, seed: int, *, num_questions: int = 4000, shown: int = 8) -> float:
    """Return how often the nearest of some random items is the one that a judge without errors would choose.

    Args:
        world: The items.
        vectors: Vectors of the items in the space that is measured, (N, any).
        seed: Seed of the questions.
        num_questions: Number of questions.
        shown: Candidates per question.
    """
    lottery = random.Random(seed)
    drawn = torch.tensor([lottery.sample(range(len(vectors)), shown + 1) for _ in range(num_questions)])
    spaces = (F.normalize(world.truth, dim=-1), F.normalize(vectors, dim=-1))
    right, found = (torch.einsum("qd,qmd->qm", space[drawn[:, 0]], space[drawn[:, 1:]]).argmax(1) for space in spaces)
    return float((right == found).double().mean())
