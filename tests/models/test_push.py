"""`stjepa export --push`: what is sent to the Hub, and what is said when it cannot be; against a tiny Hub of our own."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from stjepa_cli.core.types import TeacherCard
from stjepa_cli.models.checkpoint import read_header
from stjepa_cli.models.formats import FORMATS
from stjepa_cli.models.model_card import HUB_LICENCES, model_card
from stjepa_cli.models.release import release_config
from stjepa_cli.models.student import PIXEL_MEAN, PIXEL_STD
from tests.caches import SPEC

REPOSITORY = Path(__file__).resolve().parents[2]
GOLDEN = REPOSITORY / "tests" / "golden" / "2026-11-21" / "checkpoints"


class Hub(ThreadingHTTPServer):
    """The endpoints of the Hub that an upload calls: create, preupload, commit. It keeps what it is sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.refuse = 0
        self.created: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Answers(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.tokens.add(self.headers.get("Authorization"))
        if self.server.refuse:
            return self._answer({"error": "refused"}, self.server.refuse)
        if self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            return self._answer({"url": f"{self.server.address}/me/student"})
        if self.path.startswith("/api/models/") and "/preupload/" in self.path:
            asked = json.loads(body)["files"]
            return self._answer({"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in asked]})
        if self.path.startswith("/api/models/") and "/commit/" in self.path:
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return self._answer({"success": True, "commitOid": "0" * 40, "commitUrl": f"{self.server.address}/me/student/commit/0"})
        if self.path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        return self._answer({"error": self.path}, 404)

    def do_GET(self) -> None:
        self._answer({"id": "me/student", "sha": "0" * 40, "siblings": []}, self.server.refuse or 200)

    def _answer(self, data: object, code: int = 200) -> None:
        text = json.dumps(data).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        yield server
        server.shutdown()


def export(folder: Path, *more: str, code: int = 0, **environment: str) -> dict[str, Any]:
    """Run the command, in a process of its own since the client reads its address when it is imported."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    bare |= {"PYTHONPATH": str(REPOSITORY), "HF_HOME": str(folder / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-m", "stjepa_cli", "export", str(GOLDEN), "--out", str(folder / "out"), *more, "--json"]
    done = subprocess.run(command, env=bare | environment, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_an_export_is_pushed_whole_to_a_private_model(hub: Hub, tmp_path: Path) -> None:
    found = export(tmp_path, "--push", "me/student", HF_ENDPOINT=hub.address, HF_TOKEN="hf_secret")
    assert found["pushed"] == f"{hub.address}/me/student"
    (created,) = hub.created
    assert (created["name"], created["organization"], created["visibility"]) == ("student", "me", "private")
    assert hub.files.keys() == {"README.md", "config.json", "model.safetensors"}
    assert all((tmp_path / "out" / name).read_bytes() == data for name, data in hub.files.items())
    assert hub.tokens == {"Bearer hf_secret"}


@pytest.mark.parametrize(("code", "message"), [(401, "hf auth login"), (403, "may not write"), (500, "status 500")])
def test_a_refusal_keeps_the_export_and_says_how_to_go_on(hub: Hub, tmp_path: Path, code: int, message: str) -> None:
    hub.refuse = code
    told = export(tmp_path, "--push", "me/student", HF_ENDPOINT=hub.address, HF_TOKEN="hf_secret", code=1)["error"]
    assert message in told
    assert "`hf upload me/student " in told
    assert "hf_secret" not in told
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_what_cannot_be_pushed_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    assert "nobody is logged in" in export(tmp_path, "--push", "me/student", code=1)["error"]
    assert "HF_HUB_OFFLINE is set" in export(tmp_path, "--push", "me/student", HF_TOKEN="x", HF_HUB_OFFLINE="1", code=1)["error"]
    assert "expected OWNER/NAME" in export(tmp_path, "--push", "../student", HF_TOKEN="x", code=1)["error"]
    assert not (tmp_path / "out").exists()


def test_a_hub_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    told = export(tmp_path, "--push", "me/student", HF_ENDPOINT="http://127.0.0.1:9", HF_TOKEN="x", code=1)["error"]
    assert "cannot be reached" in told


@pytest.mark.parametrize(
    ("licence", "lines"),
    [
        ("cc-by-nc-4.0", ["license: cc-by-nc-4.0"]),
        ("Apache-2.0", ["license: apache-2.0"]),
        ("unknown", ["license: unknown"]),
        ("", ["license: unknown"]),
        ("none", []),
        ("DINOv3 License", ["license: other", "license_name: dinov3-license"]),
        ("other", ["license: other"]),
        ('x"\n---\nevil: yes', ["license: other", "license_name: x-evil-yes"]),
    ],
)
def test_the_licence_of_a_card_is_one_that_the_hub_accepts(licence: str, lines: list[str]) -> None:
    config = release_config(read_header(GOLDEN / "checkpoint_step2.safetensors"), PIXEL_MEAN, PIXEL_STD)
    teacher = TeacherCard("t", "videomae", "1", "0" * 64, licence, 12, SPEC)
    config = replace(config, provenance=replace(config.provenance, teacher=teacher))
    front = model_card(config, FORMATS["hf"], 1).split("---\n")[1].splitlines()
    assert [line for line in front if line.startswith("license")] == lines
    assert all(line.removeprefix("license: ") in HUB_LICENCES | {"other"} for line in front if line.startswith("license: "))
