"""Fine-tuning: it learns a motion from train videos, by the recipe, and reports its settings."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from stjepa_cli.core.config import StudentConfig
from stjepa_cli.core.errors import ConfigError, StjepaError, VideoError
from stjepa_cli.core.runtime import Runtime
from stjepa_cli.core.types import ClipSpec
from stjepa_cli.data.datasets.base import VideoItem
from stjepa_cli.data.eval_clips import EvalClips
from stjepa_cli.data.video import Clip, read_clip, read_clips
from stjepa_cli.encoders import base
from stjepa_cli.encoders.base import encode_videos
from stjepa_cli.encoders.features import Features
from stjepa_cli.encoders.student_encoder import StudentEncoder
from stjepa_cli.evaluation.probes import _finetuning
from stjepa_cli.evaluation.probes._finetuning import Classifier, Schedule, batches, rate_factor
from stjepa_cli.evaluation.probes.base import ProbeResult, VideoSource
from stjepa_cli.evaluation.probes.finetune import FinetuneProbe, FinetuneSettings, TrainStep
from stjepa_cli.evaluation.probes.linear import LinearProbe
from stjepa_cli.models.student import Student
from stjepa_cli.training.augmentation import DropPath
from stjepa_cli.training.optim import ScheduledOptimizer, learning_rate
from tests.media import truncate, write_video

RUNTIME = Runtime("cpu")
SPEC = ClipSpec(num_frames=8, size_px=32, tubelet=2, patch_px=8)
NUM_FRAMES, SIDE, SQUARE = 12, 32, 8
NUM_TRAIN, NUM_TEST = 24, 24
QUICK = FinetuneSettings(epochs=2, batch_size=6, micro_batch=4, lr=4e-2, warmup_epochs=1, dropout=0.1)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors of a few hundred numbers: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def sliding(direction: int, seed: int) -> torch.Tensor:
    """Frames uint8 (T, 3, S, S): a square slides right or left over noise, round the edges, from anywhere.

    Seeds 2 k and 2 k + 1 start at the same place: no single frame tells a direction.
    """
    generator = torch.Generator().manual_seed(seed // 2)
    frames = torch.randint(0, 60, (NUM_FRAMES, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    top, start = (int(torch.randint(bound, (1,), generator=generator)) for bound in (SIDE - SQUARE, SIDE))
    for i in range(NUM_FRAMES):
        moment = i if direction == 0 else NUM_FRAMES - 1 - i
        columns = [(start + 3 * moment + k) % SIDE for k in range(SQUARE)]
        frames[i, :, top : top + SQUARE, columns] = 230
    return frames


@dataclass
class Listener:
    """A progress listener that keeps steps, losses and notes."""

    name: str = ""
    total: int | None = None
    steps: int = 0
    losses: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def task(self, name: str, *, total: int | None, unit: str = "clips", completed: int = 0) -> AbstractContextManager[Listener]:
        if unit == "steps":
            self.name, self.total = name, total
        return nullcontext(self)

    def advance(self, count: int = 1, **figures: float) -> None:
        if "loss" in figures:
            self.steps += count
            self.losses.append(figures["loss"])

    def note(self, text: str) -> None:
        self.notes.append(text)


@dataclass(frozen=True)
class Scene:
    """Videos of two motions, and a student that has learned nothing."""

    source: VideoSource
    train: Features
    test: Features

    def run(
        self, settings: FinetuneSettings = QUICK, *, seed: int = 0, num_classes: int = 2, runtime: Runtime = RUNTIME, **source: object
    ) -> ProbeResult:
        """Fine-tune with some fields of the source replaced."""
        probe = FinetuneProbe()
        probe.runtime, probe.settings = runtime, settings
        probe.source = replace(self.source, runtime=runtime, **source)  # type: ignore[arg-type]
        return probe.fit_score(self.train, self.test, num_classes, seed)

    def labelled(self, labels: torch.Tensor) -> Scene:
        """The same with other labels of train."""
        return replace(self, train=replace(self.train, labels=labels))

    def small(self, num_train: int = 8, num_test: int = 4) -> Scene:
        """With the first videos only."""
        return replace(self, train=self.train.rows(torch.arange(num_train)), test=self.test.rows(torch.arange(num_test)))


def features_of(student: Student, items: list[VideoItem]) -> Features:
    rows = [found for _, found in encode_videos(StudentEncoder(student, "start"), items, EvalClips(), runtime=RUNTIME)]
    values = torch.cat([row for row in rows if isinstance(row, torch.Tensor)])
    ids = tuple(item.id for item in items)
    return Features(values, torch.tensor([int(item.label or 0) for item in items]), ids, ids)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    root, sides = tmp_path_factory.mktemp("sliding"), {}
    for side, first, count in (("train", 0, NUM_TRAIN), ("test", 1000, NUM_TEST)):
        names = [f"{side}{i:03}" for i in range(count)]
        paths = [write_video(root / f"{name}.avi", sliding(i % 2, first + i), fps=25.0) for i, name in enumerate(names)]
        sides[side] = [VideoItem(name, path, i % 2, None) for i, (name, path) in enumerate(zip(names, paths, strict=True))]
    config = StudentConfig(dim=24, num_factorized=1, num_joint=1, num_heads=2)
    student = Student(config, SPEC, torch.Generator().manual_seed(0)).eval().requires_grad_(False)
    items = {item.id: item for side in sides.values() for item in side}
    return Scene(VideoSource(student, items, SPEC, EvalClips()), features_of(student, sides["train"]), features_of(student, sides["test"]))


@pytest.fixture(scope="module")
def small(scene: Scene) -> Scene:
    return scene.small()


@pytest.fixture(scope="module")
def result(small: Scene) -> ProbeResult:
    return small.run()


def scores(found: ProbeResult) -> torch.Tensor:
    assert found.scores is not None
    return found.scores


# --------------------------------------------------------------------------------------------------------- what it does


def test_it_learns_a_motion_better_than_frozen_features_of_the_initial_student(scene: Scene) -> None:
    frozen = LinearProbe().fit_score(scene.train, scene.test, 2, seed=0).metrics["top1"]
    listener = Listener()
    recipe = FinetuneSettings(epochs=25, batch_size=12, lr=8e-2, warmup_epochs=2, mixup=0.1, cutmix=0.1, erasing=0.1)
    found = scene.run(recipe, runtime=Runtime("cpu", progress=listener))
    assert frozen < 0.85
    assert found.metrics["top1"] > 0.95
    assert (listener.name, listener.total, listener.steps) == ("fine-tuning", 50, 50)
    assert sum(listener.losses[-5:]) < sum(listener.losses[:5]) - 1


def test_the_student_given_is_unchanged_and_the_one_found_is_another_frozen_one(small: Scene) -> None:
    before = {name: value.clone() for name, value in small.source.student.state_dict().items()}
    found = small.run().student
    assert found is not None
    assert all(torch.equal(value, before[name]) for name, value in small.source.student.state_dict().items())
    assert not small.source.student.training
    assert not any(parameter.requires_grad for parameter in small.source.student.parameters())
    assert list(found.state_dict()) == list(before)
    assert not any(torch.equal(value, before[name]) for name, value in found.state_dict().items())
    assert not found.training
    assert not any(parameter.requires_grad for parameter in found.parameters())


def test_the_same_seed_gives_the_same_bits_whatever_the_number_of_workers(small: Scene, result: ProbeResult) -> None:
    again = small.run(runtime=Runtime("cpu", workers=5))
    assert torch.equal(scores(again), scores(result))
    assert result.student is not None
    assert again.student is not None
    mine, other = result.student.state_dict(), again.student.state_dict()
    assert all(torch.equal(mine[name], other[name]) for name in mine)
    assert not torch.equal(scores(small.run(seed=1)), scores(result))


def test_clips_scored_at_once_change_no_score(small: Scene, result: ProbeResult) -> None:
    assert torch.allclose(scores(small.run(runtime=Runtime("cpu", batch_size=1))), scores(result), atol=1e-5)


def test_rows_in_another_order_change_no_score(small: Scene, result: ProbeResult) -> None:
    turned = replace(small, train=small.train.rows(torch.arange(7, -1, -1)), test=small.test.rows(torch.tensor([2, 0, 3, 1])))
    assert torch.allclose(scores(turned.run()), scores(result)[[2, 0, 3, 1]], atol=1e-6)


def test_labels_of_test_videos_are_for_scoring_only(small: Scene, result: ProbeResult) -> None:
    lied = replace(small, test=replace(small.test, labels=1 - small.test.labels)).run()
    assert torch.equal(scores(lied), scores(result))
    assert lied.metrics["top1"] == pytest.approx(1 - result.metrics["top1"])


def test_head_and_student_give_the_scores_of_the_result_averaged_over_clips(small: Scene) -> None:
    plan = EvalClips(2, 1)
    found = small.run(eval_clips=plan)
    assert found.student is not None
    assert found.head is not None
    items = [small.source.items[name] for name in small.test.ids]
    for (_, features), row in zip(
        encode_videos(StudentEncoder(found.student, "tuned"), items, plan, runtime=RUNTIME), scores(found), strict=True
    ):
        assert isinstance(features, torch.Tensor)
        assert features.shape == (2, 24)
        assert torch.allclose(found.head.predict(features).mean(dim=0), row, atol=1e-6)
    assert torch.allclose(scores(found).sum(dim=1), torch.ones(4))


def test_classes_that_train_lacks_are_never_predicted(small: Scene) -> None:
    found = small.labelled(small.train.labels * 2 + 1).run(num_classes=5)  # 1 and 3; test has 0 and 1
    assert found.head is not None
    assert found.head.labels.tolist() == [1, 3]
    assert (scores(found)[:, [0, 2, 4]] == 0).all()
    alone = small.labelled(torch.ones(8, dtype=torch.int64)).run()
    assert torch.equal(scores(alone), torch.tensor([[0.0, 1.0]]).expand(4, 2))
    assert alone.metrics["top1"] == 0.5


def test_fixed_settings_are_reported(result: ProbeResult) -> None:
    wanted = {"epochs": 2.0, "batch_size": 6.0, "lr": 4e-2, "layer_decay": 0.75, "mixup": 0.8, "cutmix": 1.0, "steps": 2.0}
    assert {name: result.chosen[name] for name in wanted} == wanted
    assert set(result.metrics) == {"top1", "top5"}


def test_the_student_found_takes_clips_as_they_were_cut(small: Scene) -> None:
    dense = replace(SPEC, sampling="dense", stride=1)
    found = small.run(clip=dense, eval_clips=EvalClips(sampling="dense", stride=1)).student
    assert found is not None
    assert found.spec == dense
    assert small.source.student.spec == SPEC


@pytest.mark.cuda
def test_a_gpu_gives_the_same_scores_within_bfloat16(small: Scene, result: ProbeResult) -> None:
    found = small.run(runtime=Runtime("cuda"))
    assert torch.allclose(scores(found), scores(result), atol=0.03)


# ------------------------------------------------------------------------------------------------------------- recipe


def test_each_parameter_learns_with_the_rate_of_its_depth() -> None:
    student = Student(StudentConfig(dim=8, num_factorized=1, num_joint=2, num_heads=2), SPEC, torch.Generator())
    model = Classifier(student, 3, torch.Generator())
    settings = FinetuneSettings(epochs=4, lr=0.8, warmup_epochs=1, layer_decay=0.5, weight_decay=0.3, batch_size=64)
    descent = ScheduledOptimizer(model, settings.optimizer, 64, lambda name: rate_factor(name, student, 0.5))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    descent.step(1, 8)
    rate = learning_rate(1, 8, settings.optimizer, 64)
    assert rate == pytest.approx(0.2)  # 0.8 * 64 / 256, warm
    depths = {"student.embed": 4, "student.factorized.0": 3, "student.joint.0": 2, "student.joint.1": 1, "student.norm": 0, "head": 0}
    found = {parameter: group for group in descent.optimizers[0].param_groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        (depth,) = (depth for start, depth in depths.items() if name.startswith(start + "."))
        assert found[parameter]["lr"] == pytest.approx(0.2 * 0.5**depth), name
        assert found[parameter]["weight_decay"] == (0.0 if name.endswith("bias") or "norm" in name else 0.3), name
        assert found[parameter]["betas"] == (0.9, 0.999)


def test_the_rate_warms_up_linearly_and_falls_along_a_cosine_to_a_thousandth() -> None:
    optimizer = FinetuneSettings(epochs=10, warmup_epochs=2).optimizer
    rates = [learning_rate(step, 100, optimizer, 256) for step in range(100)]
    assert rates[:20] == pytest.approx([1e-3 * (step + 1) / 20 for step in range(20)])
    assert rates[59] == pytest.approx((1e-3 + 1e-6) / 2)
    assert rates[99] == pytest.approx(1e-6)
    short = FinetuneSettings(epochs=3).optimizer  # warm-up takes half of it at most
    assert max(learning_rate(step, 12, short, 256) for step in range(12)) == learning_rate(5, 12, short, 256) == 1e-3


def test_the_gradient_is_that_of_the_whole_batch_whatever_is_in_memory_at_once(scene: Scene) -> None:
    clips = torch.stack([read_clip(scene.source.items[name].path, SPEC).pixels for name in scene.train.ids[:6]])
    gradients, losses = [], []
    for micro_batch in (6, 4, 1):
        settings = replace(QUICK, micro_batch=micro_batch)
        student = Student(scene.source.student.config, SPEC, torch.Generator().manual_seed(3))
        model = Classifier(student, 2, torch.Generator().manual_seed(4)).train()
        with DropPath([*student.factorized, *student.joint], 0.3) as paths:
            losses.append(float(TrainStep(model, paths, settings, 0).backward(5, clips, scene.train.labels[:6])))
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)
    assert torch.allclose(gradients[0], gradients[1], atol=1e-6)
    assert torch.allclose(gradients[0], gradients[2], atol=1e-6)


def test_a_pass_takes_each_video_once_at_most_and_every_epoch_sees_another_view(scene: Scene) -> None:
    schedule = Schedule.of(7, batch_size=3, epochs=3, seed=5)
    assert (schedule.steps_per_epoch, schedule.num_steps) == (2, 6)
    order = list(schedule.clips())
    for epoch in range(3):
        mine = [place for number, place in order if number == epoch]
        assert len(mine) == len(set(mine)) == 6
    assert Schedule.of(2, batch_size=32, epochs=3, seed=0).num_steps == 3
    videos = [scene.source.items[name] for name in scene.train.ids[:7]]
    fed = list(batches(scene.source, videos, schedule))
    places = torch.cat([part for _, part in fed]).tolist()
    assert places == [place for _, place in order]
    for clip, (epoch, place) in zip(torch.cat([clips for clips, _ in fed]), order, strict=True):
        item = videos[place]
        assert torch.equal(clip, read_clip(item.path, SPEC, clip_id=item.id, view=epoch + 1, seed=5).pixels)


def test_it_does_not_matter_whether_activations_are_kept(small: Scene, result: ProbeResult) -> None:
    student = Student(small.source.student.config, SPEC, torch.Generator())
    student.load_state_dict(small.source.student.state_dict())
    student.activation_checkpointing = True
    assert torch.equal(scores(small.run(student=student)), scores(result))


# ------------------------------------------------------------------------------------------------------- what it refuses


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "cannot use this epochs: got 0, expected at least 1"),
        ({"warmup_epochs": -1}, "cannot use this warmup_epochs: got -1, expected 0 or more"),
        ({"lr": 0.0}, "cannot use this lr: got 0.0, expected above 0, at most 1000"),
        ({"lr": float("nan")}, "cannot use this lr"),
        ({"layer_decay": 1.1}, "cannot use this layer_decay: got 1.1, expected above 0, at most 1"),
        ({"drop_path": 1.0}, "cannot use this drop_path: got 1.0, expected a fraction below 1"),
        ({"mixup": -0.1}, "cannot use this mixup: got -0.1, expected 0 or more"),
        ({"erasing": 1.5}, "cannot use this erasing: got 1.5, expected a fraction, 0 to 1"),
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FinetuneSettings(**change)  # type: ignore[arg-type]


def test_a_loss_that_is_not_finite_says_what_to_lower(small: Scene) -> None:
    broken = copy.deepcopy(small.source.student)
    broken.norm.weight.fill_(torch.inf)
    with pytest.raises(StjepaError, match=r"fine-tuning diverged at step 1: got a loss of .*, lr 0.04. Lower --lr"):
        small.run(student=broken)


def test_a_video_that_no_longer_decodes_is_named(small: Scene, tmp_path: Path) -> None:
    for name in (small.train.ids[3], small.test.ids[1]):
        cut = truncate(write_video(tmp_path / f"{name}.avi", sliding(0, 0), fps=25.0), 0.3)
        items = {**small.source.items, name: replace(small.source.items[name], path=cut)}
        with pytest.raises(VideoError, match=name):
            small.run(items=items)


def test_a_video_that_is_damaged_beside_its_centre_is_used_by_its_centre(small: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    bad_train, bad_test = small.source.items[small.train.ids[3]].path, small.source.items[small.test.ids[1]].path

    def view(path: Path, spec: ClipSpec, **options: object) -> Clip:
        if path == bad_train and options:
            raise VideoError(path, "a frame cannot be decoded")
        return read_clip(path, spec, **options)  # type: ignore[arg-type]

    def clips(path: Path, spec: ClipSpec, plan: EvalClips) -> torch.Tensor:
        if path == bad_test and plan.num_clips > 1:
            raise VideoError(path, "a frame cannot be decoded")
        return read_clips(path, spec, plan)

    monkeypatch.setattr(_finetuning, "read_clip", view)
    monkeypatch.setattr(base, "read_clips", clips)
    listener = Listener()
    found = small.run(eval_clips=EvalClips(2, 1, SPEC.num_frames), runtime=Runtime("cpu", progress=listener))
    assert [note.split(":")[0] for note in listener.notes] == [
        "the centre clip takes the place of a view that cannot be decoded",  # once, though each epoch meets it
        "scored on its centre clip alone",
    ]
    assert found.scores is not None
    assert found.head is not None
    assert found.student is not None
    with torch.inference_mode():
        alone = found.head.predict(found.student(read_clips(bad_test, SPEC, EvalClips())).mean(dim=1))[0]
    assert torch.allclose(found.scores[1], alone, atol=1e-5)


def test_videos_that_are_not_listed_and_clips_of_another_geometry_are_refused(small: Scene) -> None:
    with pytest.raises(StjepaError, match="8 of 8 are not listed: got train000"):
        small.run(items={})
    with pytest.raises(ConfigError, match="the student takes other clips"):
        small.run(clip=replace(SPEC, num_frames=16))
