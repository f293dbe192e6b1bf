"""What the probes take: kNN, linear and the others on UCF-101-sized features, and a grid of attentive heads in one pass.

    python -m tests.benchmarks.bench_probes [--quick] [--json] [--device cuda]

*Probes*: 9.5 k train and 3.8 k test videos of 101 classes in 18 and 7 groups, 384 numbers each, correlated as features are; wall
and processor seconds, all cores. *Grid*: 20 settings of learning rate and weight decay fitted in one pass, against the same code
run once for each, in turns, on one thread; tokens are float16 in memory, so what is shared is reading, converting and the
overhead of small steps, not decoding or encoding.

Aims: kNN and linear under 10 s on two cores; the grid 10 times as fast as separate runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stjepa_cli.core.devices import autocast, pick_device
from stjepa_cli.core.runtime import Runtime
from stjepa_cli.encoders.features import Features
from stjepa_cli.evaluation.probes._attention import AttentiveSettings, Setting, fit
from stjepa_cli.evaluation.probes.attentive import AttentiveProbe
from stjepa_cli.evaluation.probes.base import build
from stjepa_cli.models.attentive import num_attention_heads
from tests.benchmarks.common import Row, interleave, parser, ratio, report

NUM_CLASSES, DIM = 101, 384


def ucf_sized(num_rows: int, side: str, first_group: int, num_groups: int) -> Features:
    """Rows scattered around centres of classes and of groups, mixed by one matrix."""
    shared = torch.Generator().manual_seed(0)
    centres = torch.randn(NUM_CLASSES, DIM, generator=shared)
    of_groups = 1.5 * torch.randn(NUM_CLASSES, 25, DIM, generator=shared)
    mix = torch.randn(DIM, DIM, generator=shared) / DIM**0.5
    labels = torch.arange(num_rows) % NUM_CLASSES
    groups = first_group + torch.arange(num_rows) // NUM_CLASSES % num_groups
    values = (centres[labels] + of_groups[labels, groups] + 3 * torch.randn(num_rows, DIM)) @ mix
    return Features(values, labels, tuple(f"g{group:02d}" for group in groups.tolist()), tuple(f"{side}{i:05d}" for i in range(num_rows)))


def measure_probes(device: torch.device, *, quick: bool) -> list[Row]:
    train, test = ucf_sized(953 if quick else 9537, "a", 7, 18), ucf_sized(378 if quick else 3783, "b", 0, 7)
    rows: list[Row] = []
    for name in ("knn", "linear", "retrieval", "fewshot"):
        wall, processor = time.perf_counter(), time.process_time()
        metrics = build(name, Runtime(str(device))).fit_score(train, test, NUM_CLASSES, seed=0).metrics
        rows.append(
            {
                "probe": name,
                "wall_seconds": time.perf_counter() - wall,
                "processor_seconds": time.process_time() - processor,
                "first metric": next(iter(metrics.values())),
            }
        )
    return rows


class Plain(nn.Module):
    """The attentive probe in torch's own layers; tokens (B, L, D) to (B, C)."""

    def __init__(self, num_blocks: int, dim: int, num_classes: int) -> None:
        super().__init__()
        heads = num_attention_heads(dim)
        layer = nn.TransformerEncoderLayer(dim, heads, 4 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, num_blocks, enable_nested_tensor=False) if num_blocks else nn.Identity()
        self.query = nn.Parameter(torch.randn(1, 1, dim))
        self.norm, self.mlp_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.cross = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.out = nn.Linear(dim, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        x, query = self.norm(self.blocks(tokens)), self.query.expand(len(tokens), -1, -1)
        y = query + self.cross(query, x, x, need_weights=False)[0]
        y = y + self.mlp(self.mlp_norm(y))
        found: Tensor = self.out(y[:, 0])
        return found


def fit_plain(train: Features, setting: Setting, settings: AttentiveSettings, device: torch.device) -> nn.Module:
    """One run with one setting."""
    assert train.tokens is not None
    probe = Plain(settings.num_blocks, train.tokens.shape[2], int(train.labels.max()) + 1).to(device)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=setting.lr, weight_decay=setting.weight_decay)
    for _ in range(settings.num_steps(len(train))):
        rows = torch.randperm(len(train))[: settings.batch_size]
        with autocast(device):
            logits = probe(train.tokens[rows].to(device).float()).float()
        loss = F.cross_entropy(logits, train.labels[rows].to(device))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    return probe


def measure_grid(device: torch.device, num_blocks: int, num_tokens: int, dim: int, *, steps: int, rounds: int) -> Row:
    grid = AttentiveProbe.settings.grid
    settings = AttentiveSettings(num_blocks, grid, grid[0], epochs=1, batch_size=16, min_steps=steps)
    names = tuple(f"v{i:03d}" for i in range(64))
    tokens = torch.randn(64, num_tokens, dim).half()
    train = Features(torch.zeros(64, 1), torch.arange(64) % 8, names, names, tokens)

    def run(settings_of_run: tuple[Setting, ...]) -> object:
        return fit(train, train.by_id(), settings_of_run, settings, 0, Runtime(str(device)))

    contenders = {
        "one": lambda: run(grid),
        "separate": lambda: [run((setting,)) for setting in grid],
        "plain": lambda: [fit_plain(train, setting, settings, device) for setting in grid],
    }
    seconds = interleave({name: waited(call, device) for name, call in contenders.items()}, rounds)
    return {
        "blocks": num_blocks + 1,
        "tokens": num_tokens,
        "dim": dim,
        "one pass s": min(seconds["one"]),
        "20 runs s": min(seconds["separate"]),
        "times as fast": ratio(seconds, "one", "separate"),
        "20 plain runs s": min(seconds["plain"]),
        "times as fast as plain": ratio(seconds, "one", "plain"),
    }


def waited(call: Callable[[], object], device: torch.device) -> Callable[[], None]:
    """A call that ends when the device has done what it was asked to."""

    def run() -> None:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run


def measure_grids(device: torch.device, *, quick: bool) -> list[Row]:
    sizes = [(0, 8, 16), (3, 4, 16)] if quick else [(0, 1568, 384), (0, 64, 64), (3, 8, 16), (3, 64, 64)]
    if device.type == "cuda" and not quick:
        sizes.append((3, 1568, 384))
    return [measure_grid(device, *size, steps=2, rounds=1 if quick else 3) for size in sizes]


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--device", default="cpu", help="cpu or cuda")
    arguments = made.parse_args()
    device = pick_device(arguments.device)
    report("Probes on UCF-101-sized features", measure_probes(device, quick=arguments.quick), as_json=arguments.json)
    torch.set_num_threads(1)
    report("A grid of 20 attentive heads, one pass against 20 runs", measure_grids(device, quick=arguments.quick), as_json=arguments.json)


if __name__ == "__main__":
    main()
