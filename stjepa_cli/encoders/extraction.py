"""How features are extracted from videos: clips, block, pooling, and the folder where features are kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stjepa_cli.core.errors import ConfigError
from stjepa_cli.core.types import ClipSpec
from stjepa_cli.data.eval_clips import ONE_CLIP, EvalClips
from stjepa_cli.encoders.base import POOLS, EncoderCard
from stjepa_cli.encoders.resolve import layer_error
from stjepa_cli.models.student import block_number


@dataclass(frozen=True)
class Extraction:
    """How features are extracted, and where they are kept.

    Attributes:
        pool: `mean` over all tokens (F = D); `time` for the mean over space with the time steps side by side (F = t * D); or
            `tokens` for all of them, for the probes that take tokens (the other probes then see their mean).
        clips: The clips to cut from each video.
        layer: Block of a student whose tokens are taken, counted from 1 or, if negative, from the end. None for the last.
        folder: Folder where features are kept and looked up, or None to keep them in memory only.

    Raises:
        ConfigError: There is no such pool.
    """

    pool: str = "mean"
    clips: EvalClips = ONE_CLIP
    layer: int | None = None
    folder: Path | None = None

    def __post_init__(self) -> None:
        if self.pool not in POOLS:
            raise ConfigError("unknown pool", got=repr(self.pool), expected="one of " + ", ".join(POOLS))

    def check(self, card: EncoderCard) -> None:
        """Check that an encoder can give these features, before it is loaded.

        Raises:
            ConfigError: The encoder has no such block, or takes clips of another length.
        """
        if self.layer is not None:
            if card.num_blocks is None:
                raise layer_error(card.name, self.layer)
            block_number(self.layer, card.num_blocks)
        if card.clip is not None:
            self.cut(card.clip)

    def cut(self, spec: ClipSpec) -> tuple[EvalClips, ClipSpec]:
        """Return the clips of a video with their number of frames, and how a clip is cut, for an encoder that takes `spec`.

        Raises:
            ConfigError: The clips have another number of frames than the encoder takes, or there is no such sampling.
        """
        clips = self.clips.fit(spec)
        return clips, clips.cut(spec)


DEFAULT = Extraction()
