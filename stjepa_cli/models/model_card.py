"""The model card of an export: what the encoder is, how to load it, where it comes from, and whose licence applies."""

from __future__ import annotations

import re

from stjepa_cli.models.formats import Format
from stjepa_cli.models.release import Provenance, ReleaseConfig

HUB_LICENCES = frozenset({
    "afl-3.0", "agpl-3.0", "apache-2.0", "apple-amlr", "apple-ascl", "artistic-2.0", "bigcode-openrail-m",
    "bigscience-bloom-rail-1.0", "bigscience-openrail-m", "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "bsl-1.0",
    "c-uda", "cc", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0",
    "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-sa-3.0",
    "cc-by-sa-4.0", "cc0-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "cdla-sharing-1.0", "creativeml-openrail-m",
    "deepfloyd-if-license", "ecl-2.0", "epl-1.0", "epl-2.0", "etalab-2.0", "eupl-1.1", "eupl-1.2",
    "fair-noncommercial-research-license", "gemma", "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "h-research", "intel-research", "isc",
    "lgpl", "lgpl-2.1", "lgpl-3.0", "lgpl-lr", "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4", "lppl-1.3c", "mit",
    "mpl-2.0", "ms-pl", "ncsa", "odbl", "odc-by", "ofl-1.1", "openrail", "openrail++", "osl-3.0", "pddl", "postgresql", "unknown",
    "unlicense", "wtfpl", "zlib",
})  # fmt: skip
"""Licences that the Hub knows by name (https://huggingface.co/docs/hub/repositories-licenses)."""


def model_card(config: ReleaseConfig, format: Format, num_parameters: int) -> str:
    """Return the `README.md` of an export."""
    clip, origin, teacher = config.clip, config.provenance, config.provenance.teacher
    shape = f"(B, {clip.num_frames}, 3, {clip.size_px}, {clip.size_px})"
    licence = _licence(teacher.licence)
    return "\n".join(
        [
            *("---", "library_name: stjepa", *licence, "tags: [video, self-supervised, jepa]", "---", "", "# A video encoder", ""),
            f"A space-time transformer with {num_parameters:,} parameters ({config.student.num_factorized} factorized and "
            f"{config.student.num_joint} joint blocks, width {config.student.dim}). It was trained by stjepa to predict the latents of a "
            "frozen teacher in hidden space-time tubes from the visible ones. " + _labels_seen(origin),
            *("", f"This folder: {format.about}.", "", "```python", format.usage, "```", ""),
            f"* `clips`: uint8 {shape}, RGB 0 to 255, {clip.sampling} sampling; the encoder normalises pixels itself.",
            f"* `tokens`: float32 (B, {clip.grid.num_tokens}, {config.student.dim}), a {clip.grid} token grid in (time, row, column) "
            "order. Their mean over axis 1 is a feature vector of the clip.",
            *("", "## Where it comes from", "", "| | |", "|---|---|"),
            f"| teacher | {teacher.name}, revision {teacher.revision} |",
            f"| teacher's licence | {teacher.licence} |",
            f"| teacher saw labels | {teacher.saw_labels or 'unknown'} |",
            f"| data set | {origin.dataset} |",
            f"| cache | {origin.cache_digest} |",
            f"| trained | {origin.step:,} steps, epoch {origin.epoch}, objective {origin.objective} |",
            f"| software | {', '.join(f'{name} {version}' for name, version in origin.software.items())} |",
            *_tuning_rows(origin),
            *(
                "",
                "The encoder was trained on the outputs of the teacher. Check that the teacher's licence and the licence of the data set",
            ),
            "allow what you want to do with it.",
            "",
        ]
    )


def _licence(licence: str) -> list[str]:
    """Return the lines about the teacher's licence in the front matter, in the words that the Hub accepts.

    A licence that the Hub does not know is `other` with its name; a teacher without weights has none to pass on.
    """
    name = licence.strip().lower()
    if name == "none":
        return []
    if name in HUB_LICENCES or name == "other":
        return [f"license: {name}"]
    slug = re.sub(r"[^a-z0-9.]+", "-", name).strip("-.")
    return ["license: other", f"license_name: {slug}"] if slug else ["license: unknown"]


def _labels_seen(origin: Provenance) -> str:
    if origin.tuning is None:
        return "It saw no labels; its teacher may have."
    return f"It was then fine-tuned with the labels of {origin.tuning.num_videos:,} videos of {origin.tuning.dataset}."


def _tuning_rows(origin: Provenance) -> list[str]:
    if origin.tuning is None:
        return []
    settings = ", ".join(f"{name} {value:g}" for name, value in origin.tuning.settings.items())
    return [
        f"| fine-tuned on | {origin.tuning.dataset}, {origin.tuning.num_videos:,} videos |",
        f"| recipe | {settings} |",
        f"| started from | {origin.tuning.start} |",
        f"| fine-tuned by | {', '.join(f'{name} {version}' for name, version in origin.tuning.software.items())} |",
    ]
