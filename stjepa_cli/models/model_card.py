"""The model card of an export: what the encoder is, how to load it, where it comes from, and whose licence applies."""

from __future__ import annotations

import json

from stjepa_cli.models.formats import Format
from stjepa_cli.models.release import Provenance, ReleaseConfig


def model_card(config: ReleaseConfig, format: Format, num_parameters: int) -> str:
    """Return the `README.md` of an export."""
    clip, origin, teacher = config.clip, config.provenance, config.provenance.teacher
    shape = f"(B, {clip.num_frames}, 3, {clip.size_px}, {clip.size_px})"
    licence = [f"license: {json.dumps(teacher.licence.lower())}"] if teacher.licence not in ("unknown", "none") else []
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
