"""A real browser without a window: what it makes of a page, measured and seen."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

BROWSER = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
SECONDS = 120
MEASURE = """<script>addEventListener('load',()=>{
const images=[...document.images],root=document.documentElement,wide=document.querySelectorAll('body *');
parent.postMessage(JSON.stringify({inner:innerWidth,scroll:root.scrollWidth,height:root.scrollHeight,images:images.length,
shown:images.filter(one=>one.naturalWidth>0).length,policy:!!document.querySelector('meta[http-equiv]'),
out:[...wide].filter(one=>one.getBoundingClientRect().right>innerWidth+1&&!one.closest('.scroll')).map(one=>one.tagName+one.className)
}),'*')})</script></head>"""


def measure(page: Path, folder: Path, width: int) -> dict[str, Any]:
    """What a browser makes of a copy of a page that carries a script, in a frame `width` px wide: windows have a least width.

    Returns:
        width of the frame and of what is in it, number of pictures and of those that could be decoded, and the names of
        elements that reach out of the frame.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    (folder / "inner.html").write_text(text.replace("</head>", MEASURE, 1))
    listen = "<script>addEventListener('message',one=>{document.body.textContent='found'+one.data+'end'})</script>"
    frame = f'<iframe src="inner.html" style="border:0;width:{width}px;height:900px"></iframe>'
    (folder / "outer.html").write_text(f'<!doctype html><meta charset="utf-8">{listen}<body>{frame}')
    dumped = _run(folder, "--virtual-time-budget=20000", "--dump-dom", f"--window-size={max(width, 600)},900", folder / "outer.html")
    found = re.search(r"found(\{.*\})end", dumped)
    assert found is not None, dumped[:2000]
    measured: dict[str, Any] = json.loads(found[1])
    return measured


def look(page: Path, folder: Path, *, dark: bool = False) -> Tensor:
    """The top of a page as it is, uint8 (3, 900, 600)."""
    folder.mkdir(parents=True, exist_ok=True)
    scheme = ("--blink-settings=preferredColorScheme=0",) if dark else ()
    _run(folder, *scheme, f"--screenshot={folder / 'seen.png'}", "--window-size=600,900", page)
    with Image.open(folder / "seen.png") as picture:
        seen = picture.convert("RGB")
        return torch.frombuffer(bytearray(seen.tobytes()), dtype=torch.uint8).view(seen.height, seen.width, 3).permute(2, 0, 1)


def _run(folder: Path, *arguments: object) -> str:
    *options, page = arguments
    assert BROWSER is not None
    command = [BROWSER, *QUIET, f"--user-data-dir={folder / 'profile'}", *map(str, options), Path(str(page)).resolve().as_uri()]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=SECONDS).stdout
