"""What a head learns from a simulated judge: agreement with the truth on items that nobody has judged.

    python -m tests.benchmarks.bench_judgements [--quick] [--json]

*Learning*: 20 to 800 answers of one out of eight shown, against the raw vectors, over 5 worlds. *Pairs*: one out of two shown, as many
answers. *Coin*: 0, 20 and 50 answers of a judge who flips a coin; nothing may get worse by more than half a point.

A world has 64 channels, of which the judge looks at 8; the others are louder. Half of 1,600 items are asked about, the other half is
measured.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import statistics
import time

import torch

from stjepa_cli.judgements.fitting import Items, learn
from stjepa_cli.judgements.heads import LinearHead
from stjepa_cli.judgements.questions import questions_of
from stjepa_cli.judgements.simulation import World, ask, make_world, true_agreement
from tests.benchmarks.common import parser, report

SEEDS = 5
NUM_ITEMS = 1600


def main() -> None:
    """Run the study and print its tables."""
    options = parser(__doc__).parse_args()
    seeds = 2 if options.quick else SEEDS
    studies = (
        ("eight shown", (20, 50, 100, 200, 400, 800), 8, False),
        ("pairs", (200, 800), 2, False),
        ("coin", (0, 20, 50), 8, True),
    )
    rows = [row(name, number, shown, coin, seeds) for name, numbers, shown, coin in studies for number in numbers]
    notes = ["points: head minus raw, mean over worlds, and the least and the most of them"]
    report("Agreement with the truth on new items", rows, as_json=options.json, notes=notes)


def row(name: str, num_answers: int, shown: int, coin: bool, seeds: int) -> dict[str, object]:
    """Return what a number of answers is worth, over several worlds."""
    started = time.process_time()
    results = [agreements(seed, num_answers, shown, coin) for seed in range(seeds)]
    gains = [100 * (head - raw) for raw, head, _ in results]
    return {
        "judge": name,
        "answers": num_answers,
        "raw": round(statistics.mean(raw for raw, _, _ in results), 3),
        "head": round(statistics.mean(head for _, head, _ in results), 3),
        "points": round(statistics.mean(gains), 1),
        "least": round(min(gains), 1),
        "most": round(max(gains), 1),
        "kept raw": f"{sum(kept for _, _, kept in results)} of {seeds}",
        "seconds": round((time.process_time() - started) / seeds, 1),
    }


def agreements(seed: int, num_answers: int, shown: int, coin: bool) -> tuple[float, float, bool]:
    """Return the agreement of raw vectors and of a head on new items, and whether the head has learned nothing."""
    whole = make_world(NUM_ITEMS, seed)
    halves = (slice(NUM_ITEMS // 2), slice(NUM_ITEMS // 2, NUM_ITEMS))
    known, new = (World(whole.vectors[half], whole.truth[half], whole.names[half]) for half in halves)
    answers = ask(known, num_answers, seed, shown=shown, coin=coin)
    questions = questions_of(answers, {name: i for i, name in enumerate(known.names)})
    fitted = learn(LinearHead(torch.eye(known.vectors.shape[1])), Items(known.vectors), questions, "listwise", seed=seed)
    with torch.no_grad():
        return true_agreement(new, new.vectors, 1), true_agreement(new, fitted.head(new.vectors), 1), fitted.penalty is None


if __name__ == "__main__":
    main()
