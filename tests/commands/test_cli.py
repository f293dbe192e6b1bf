"""The contract of the program: names, JSON keys, exit codes, streams. Run as a user runs it, in a process of its own."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stjepa_cli.evaluation.report import FILES
from tests.zygote import Zygote

REPOSITORY = Path(__file__).resolve().parents[2]
GEOMETRY = ("--num-frames", "4", "--size", "32", "--patch", "16")


class Program:
    """Runs `stjepa` in a folder."""

    def __init__(self, folder: Path, zygote: Zygote) -> None:
        self.folder, self.zygote = folder, zygote
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("STJEPA_")}
        self.environment |= {"PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf"), "COLUMNS": "200"}
        self.environment |= {"STJEPA_FEATURES": str(folder / "features")}

    def __call__(self, *arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = self.zygote.run([str(argument) for argument in arguments], cwd=self.folder, env=self.environment)
        assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def json(self, *arguments: object, code: int = 0) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self(*arguments, "--json", code=code).stdout)
        return found

    def error(self, *arguments: object) -> str:
        """The one line that a command ends with when it fails."""
        done = self(*arguments, code=1)
        lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, done.stderr
        assert done.stderr.splitlines()[-1] == lines[0]
        assert "Traceback" not in done.stderr
        return lines[0]


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    hub = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path_factory.mktemp("hf"))}
    started = Zygote({**os.environ, "PYTHONPATH": str(REPOSITORY), **hub})
    yield started
    started.close()


@pytest.fixture
def stjepa(tmp_path: Path, zygote: Zygote) -> Program:
    return Program(tmp_path, zygote)


@pytest.fixture(scope="module")
def chain(
    tiny_ssv2: Path, tiny_ucf101: Path, zygote: Zygote, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Program, dict[str, dict[str, Any]]]:
    """Every step once, with no option but sizes: the places come from the environment."""
    program = Program(tmp_path_factory.mktemp("chain"), zygote)
    program.environment |= {"STJEPA_SSV2": str(tiny_ssv2), "STJEPA_UCF101": str(tiny_ucf101), "STJEPA_CACHE": str(program.folder / "cache")}
    results = {
        "build": program.json("cache", "build", "--teacher", "hog", "--dim", 16, *GEOMETRY),
        "verify": program.json("cache", "verify", "--level", "full"),
        "pretrain": program.json("pretrain", "--epochs", 2, "--preset", "tiny", "--batch-size", 6),
        "infer": program.json("infer", "ucf101"),
        "inspect": program.json("inspect", "checkpoint", "checkpoints"),
    }
    return program, results


KEYS = {
    "build": {"cache", "clips", "written", "skipped", "failed", "bytes", "seconds"},
    "verify": {"ok", "expected", "present", "missing", "corrupt", "level", "teacher"},
    "pretrain": {"steps", "epochs", "loss_first", "loss_last", "checkpoint", "clips_per_second"},
    "infer": {"dataset", "split", "checkpoint", "videos", "knn", "linear", "retrieval"},
    "inspect": {"path", "step", "parameters", "config", "teacher", "cache_digest", "finite", "tensors"},
}


@pytest.mark.parametrize("step", KEYS)
def test_json_has_the_keys_that_scripts_rely_on(chain: tuple[Program, dict[str, dict[str, Any]]], step: str) -> None:
    assert KEYS[step] <= chain[1][step].keys()


def test_the_steps_agree_with_each_other(chain: tuple[Program, dict[str, dict[str, Any]]]) -> None:
    program, results = chain
    assert results["build"]["clips"] == results["build"]["written"] == results["verify"]["expected"] == results["verify"]["present"] == 12
    assert (results["verify"]["ok"], results["verify"]["missing"], results["verify"]["corrupt"]) == (True, 0, [])
    assert (results["pretrain"]["steps"], results["pretrain"]["epochs"]) == (4, 2)
    assert results["infer"]["checkpoint"] == results["pretrain"]["checkpoint"] == results["inspect"]["path"]
    assert results["infer"]["videos"] == {"train": 9, "test": 3, "failed": []}
    assert {"top1", "top5"} <= results["infer"]["knn"].keys() & results["infer"]["linear"].keys()
    assert {"r1", "r5", "r10"} <= results["infer"]["retrieval"].keys()
    assert results["inspect"]["finite"] is None
    assert program.json("inspect", "checkpoint", "checkpoints", "--stats")["finite"] is True
    assert results["inspect"]["tensors"][0].keys() == {"name", "shape", "dtype"}
    report = program.folder / "checkpoints" / "reports" / "ucf101_split1_checkpoint_step4"
    written = {path.name for path in report.iterdir()}
    assert set(FILES) - {"hardest.jpg"} <= written <= set(FILES)  # which needs a mistake


def test_what_is_done_is_not_done_again(chain: tuple[Program, dict[str, dict[str, Any]]]) -> None:
    program, results = chain
    again = program.json("cache", "build", "--teacher", "hog", "--dim", 16, *GEOMETRY)
    assert (again["written"], again["skipped"], again["bytes"]) == (0, 12, results["build"]["bytes"])


def test_people_get_tables_on_stdout_and_progress_on_stderr(chain: tuple[Program, dict[str, dict[str, Any]]]) -> None:
    program, _ = chain
    for arguments in (("cache", "verify"), ("pretrain", "--epochs", 2, "--preset", "tiny", "--batch-size", 6), ("inspect", "checkpoint")):
        done = program(*arguments)
        assert done.stdout.strip()
        assert "\x1b" not in done.stdout + done.stderr, "colours in a pipe"


def test_written_files_are_one_line_and_listed_on_request(chain: tuple[Program, dict[str, dict[str, Any]]]) -> None:
    program, results = chain
    folder = f"{program.folder}/{Path(results['pretrain']['checkpoint']).parent.name}"
    told = program("infer", "ucf101", "--protocol", "linear", "--checkpoint", folder).stderr.splitlines()
    assert len([line for line in told if line.startswith("wrote ")]) == 1
    assert [line for line in told if line.startswith("linear probe: 16/16 fits in ")]
    listed = program("infer", "ucf101", "--protocol", "linear", "--checkpoint", folder, "-v").stderr.splitlines()
    assert len([line for line in listed if line.startswith("wrote ")]) >= 6


def test_a_flipped_byte_makes_verify_exit_1_with_the_clip(chain: tuple[Program, dict[str, dict[str, Any]]], tmp_path: Path) -> None:
    program, _ = chain
    cache = tmp_path / "cache"
    shutil.copytree(program.folder / "cache", cache)
    shard = cache / "latents" / "c" / "0" / "0" / "0"
    data = bytearray(shard.read_bytes())
    data[4 * (8 * 16 * 2 + 4) + 100] ^= 1
    shard.write_bytes(data)
    found = program.json("cache", "verify", "--level", "full", "--cache", cache, code=1)
    ids = [json.loads(line)["id"] for line in (cache / "clips.jsonl").read_text().splitlines()]
    assert (found["ok"], found["corrupt"], found["present"], found["missing"]) == (False, [ids[4]], 11, 0)
    assert ids[4] in program("cache", "verify", "--level", "full", "--cache", cache, code=1).stdout
    assert program.json("cache", "verify", "--level", "quick", "--cache", cache)["ok"] is True


def test_a_dry_run_says_what_a_build_would_do_and_does_nothing(chain: tuple[Program, dict[str, dict[str, Any]]], tmp_path: Path) -> None:
    program, results = chain
    found = program.json("cache", "build", "--teacher", "hog", "--dim", 16, *GEOMETRY, "--cache", tmp_path / "new", "--dry-run")
    assert (found["clips"], found["written"], found["bytes"], found["dry_run"]) == (12, 0, results["build"]["bytes"], True)
    assert not (tmp_path / "new").exists()


def test_a_cache_of_something_else_is_refused_by_field_and_kept(chain: tuple[Program, dict[str, dict[str, Any]]]) -> None:
    program, results = chain
    digest = results["inspect"]["cache_digest"]
    build = ("cache", "build", "--teacher", "hog", "--dim", 16)
    assert "teacher.clip.size_px differs: got 32, expected 64" in program.error(*build, "--num-frames", 4, "--size", 64, "--patch", 16)
    assert "num_clips differs: got 12, expected 5" in program.error(*build, *GEOMETRY, "--limit", 5)
    assert "latent_dim differs: got 16, expected 8" in program.error("cache", "build", "--teacher", "hog", "--dim", 8, *GEOMETRY)
    assert program.json("inspect", "checkpoint")["cache_digest"] == digest
    assert program.json("cache", "verify", "--level", "full")["ok"] is True


def test_untrained_and_trained_checkpoints_can_both_be_scored(chain: tuple[Program, dict[str, dict[str, Any]]]) -> None:
    program, _ = chain
    options = ("--protocol", "knn", "--split", 2, "--compare", "untrained")
    board = program.json("infer", "ucf101", "--checkpoint", "checkpoints/checkpoint_step0.safetensors", *options)
    found, untrained = board["entries"]
    assert found["checkpoint"].endswith("checkpoint_step0.safetensors")
    assert found["split"] == 2
    assert "linear" not in found
    assert untrained["digests"] == found["digests"]  # the draw of the seed is the run's first checkpoint


def test_a_fine_tuned_student_is_kept_and_answers_for_any_file(
    chain: tuple[Program, dict[str, dict[str, Any]]], tiny_ucf101: Path, tmp_path: Path
) -> None:
    program, results = chain
    options = ("--protocol", "finetune", "--protocol", "linear", "--epochs", 1, "--save-head", "--out", tmp_path / "out")
    tuned = program.json("infer", "ucf101", *options)
    assert tuned["finetune"].keys() == {"top1", "top5"}
    assert tuned["own_clips"] == {"finetune": "4x5x3"}
    assert (tuned["chosen"]["finetune"]["epochs"], tuned["chosen"]["finetune"]["test_clips"]) == (1, 15)
    heads = [tmp_path / "out" / f"head_{name}.safetensors" for name in ("finetune", "linear")]
    video = next(tiny_ucf101.rglob("*_g01_c01.avi"))
    found = [program.json("infer", "video", video, "--head", head, "--top", 2) for head in heads]
    assert [answer["clips"] for answer in found] == ["4x5x3", "4x1x1"]
    assert found[0]["encoder"] == str(tmp_path / "out" / "student_finetune")
    assert found[1]["encoder"] == str(program.folder / results["infer"]["checkpoint"])
    with (tmp_path / "out" / "predictions.csv").open() as file:
        row = next(row for row in csv.DictReader(file) if row["video"] == video.stem)
    for answer, name in zip(found, ("finetune", "linear"), strict=True):
        (best, second) = answer["videos"][0]["top"]
        assert (best["class"], second["class"]) == (row[f"{name}_class1"], row[f"{name}_class2"])
        assert best["score"] == pytest.approx(float(row[f"{name}_score1"]), abs=1e-4)
    assert video.name in program("infer", "video", video, "--head", tmp_path / "out").stdout
    assert "there is no such file" in program("infer", "video", video, "none.mp4", "--head", heads[1], code=1).stderr
    start = tmp_path / "out" / "student_finetune"
    again = program.json("infer", "ucf101", "--checkpoint", start, *options)  # in the place of what it starts from
    assert again["digests"]["encoder"] != tuned["digests"]["encoder"]
    assert json.loads((start / "config.json").read_text())["provenance"]["tuning"]["start"] == again["digests"]["encoder"]


def test_a_printed_command_repeats_itself(chain: tuple[Program, dict[str, dict[str, Any]]]) -> None:
    program, _ = chain
    first = program.json("infer", "ucf101", "--protocol", "knn", "--limit", 2, "--compare", "pixels")
    program.environment = program.environment | {"STJEPA_UCF101": "elsewhere"}
    again = program.json(*shlex.split(first["command"])[1:])
    program.environment = program.environment | {"STJEPA_UCF101": shlex.split(first["command"])[4]}
    assert again["command"] == first["command"]
    assert [entry["knn"] for entry in again["entries"]] == [entry["knn"] for entry in first["entries"]]


def test_a_head_of_an_earlier_version_still_predicts(stjepa: Program, tiny_ucf101: Path) -> None:
    golden, video = REPOSITORY / "tests" / "golden" / "2026-11-21", next(tiny_ucf101.rglob("*_g01_c01.avi"))
    encoder = golden / "checkpoints" / "checkpoint_step2.safetensors"
    for name in ("linear", "attentive1"):
        found = stjepa.json("infer", "video", video, "--head", golden / f"head_{name}.safetensors", "--encoder", encoder)
        assert sum(guess["score"] for guess in found["videos"][0]["top"]) == pytest.approx(1)


def test_a_protocol_keeps_its_former_name(chain: tuple[Program, dict[str, dict[str, Any]]], tmp_path: Path) -> None:
    program, _ = chain
    options = ("--protocol", "attentive1", "--protocol", "attentive_pool", "--save-head", "--out", tmp_path)
    found = program.json("infer", "ucf101", *options)
    assert found["attentive1"] == found["attentive_pool"]
    assert {path.name for path in tmp_path.glob("head_*")} == {"head_attentive1.safetensors", "head_attentive_pool.safetensors"}


def test_version_and_help(stjepa: Program) -> None:
    alone = subprocess.run(
        [sys.executable, "-m", "stjepa_cli", "--version"], env=stjepa.environment, capture_output=True, check=True, text=True
    )
    assert re.fullmatch(r"stjepa \d+\.\d+\.\d+\n", alone.stdout)
    assert alone.stdout == stjepa("--version").stdout
    commands = ((), ("download-check",), ("cache",), ("cache", "build"), ("cache", "verify"), ("pretrain",), ("infer",),
                ("infer", "ucf101"), ("infer", "hmdb51"), ("infer", "ssv2"), ("infer", "kinetics"), ("infer", "folder"), ("infer", "video"),
                ("inspect",), ("inspect", "checkpoint"), ("inspect", "cache"), ("export",), ("report",),
                ("demo",), ("benchmark",), ("benchmark", "motion"), ("benchmark", "appearance"))  # fmt: skip
    for command in commands:
        assert "Example: stjepa" in stjepa(*command, "--help").stdout, command
    assert "[default: (base)]" in stjepa("pretrain", "--help").stdout  # and not taken for markup


@pytest.mark.parametrize(
    "arguments",
    [
        ("no-such-command",),
        ("pretrain", "--epochs", "0"),
        ("pretrain", "--epochs", "four"),
        ("pretrain", "--mask-ratio", "1.5"),
        ("pretrain", "--preset", "huge"),
        ("cache", "build", "--limit", "-1"),
        ("cache", "verify", "--level", "deep"),
        ("infer", "ucf101", "--split", "4"),
        ("inspect", "checkpoint", "a", "b"),
        ("benchmark", "motion", "--size", "huge"),
        ("benchmark", "motion", "--seeds", "0"),
    ],
)
def test_wrong_usage_exits_2(stjepa: Program, arguments: tuple[str, ...]) -> None:
    done = stjepa(*arguments, code=2)
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_with_nothing_there_every_command_says_what_to_do(stjepa: Program) -> None:
    none = ("--data-root", "nowhere")
    assert "Something-Something" in stjepa.error("cache", "build", "--teacher", "hog", *none)
    assert "there is no cache at" in stjepa.error("cache", "verify", "--cache", "nowhere")
    assert "`stjepa cache build`" in stjepa.error("pretrain", "--cache", "nowhere")
    assert "there is no checkpoint in" in stjepa.error("infer", "ucf101", *none)
    assert "there is no checkpoint" in stjepa.error("inspect", "checkpoint", "nowhere.safetensors")
    failed = stjepa.json("cache", "verify", "--cache", "nowhere", code=1)
    assert failed["ok"] is False
    assert "there is no cache" in failed["error"]


def test_weights_that_cannot_be_had_are_one_sentence_with_the_alternatives(stjepa: Program, tiny_ssv2: Path) -> None:
    message = stjepa.error("cache", "build", "--data-root", tiny_ssv2, "--cache", "c")
    assert "MCG-NJU/videomae-huge-finetuned-kinetics" in message
    assert "hog" in message
    assert "folder" in message
    assert not (stjepa.folder / "c").exists()


def test_wrong_values_that_only_the_library_knows_are_one_sentence(stjepa: Program, tiny_ssv2: Path, tiny_ucf101: Path) -> None:
    root = ("--data-root", tiny_ssv2)
    assert "multiple of the tubelet" in stjepa.error("cache", "build", *root, "--teacher", "hog", "--size", 33)
    assert "unknown dataset" in stjepa.error("cache", "build", *root, "--teacher", "hog", "--dataset", "imagenet")
    assert "unknown split" in stjepa.error("cache", "build", *root, "--teacher", "hog", "--split", "trian")
    assert "unknown device" in stjepa.error("cache", "build", *root, "--teacher", "hog", "--device", "gpu")
    (stjepa.folder / "run.toml").write_text("epoch = 3\n")
    assert "unknown key: got epoch" in stjepa.error("pretrain", "--config", "run.toml")


def test_download_check_lists_checks_and_exits_1_until_all_is_there(stjepa: Program, tiny_ssv2: Path, tiny_ucf101: Path) -> None:
    found = stjepa.json("download-check", "--ssv2", "nowhere", "--ucf101", tiny_ucf101, code=1)
    assert found["ok"] is False
    assert {"name", "ok", "detail", "fix"} == found["checks"][0].keys()
    by_name = {check["name"]: check for check in found["checks"]}
    assert "qualcomm.com" in by_name["ssv2"]["fix"]
    assert by_name["ucf101"]["ok"]
    good = stjepa.json("download-check", "--ssv2", tiny_ssv2, "--ucf101", tiny_ucf101, "--teacher", "hog", "--deep")
    assert good["ok"] is True


def test_benchmark_and_demo_refuse_what_they_cannot_do_in_one_sentence(stjepa: Program) -> None:
    assert "unknown recipe: got 'best'" in stjepa.error("benchmark", "motion", "--recipe", "best")
    assert "nowhere" in stjepa.error("benchmark", "appearance", "--teacher", "./nowhere")
    assert list(stjepa.folder.iterdir()) == []
    (stjepa.folder / "demo").mkdir()
    (stjepa.folder / "demo" / "demo.json").write_text("{}")
    assert "demo holds something else. Name a new folder with --out." in stjepa.error("demo")
