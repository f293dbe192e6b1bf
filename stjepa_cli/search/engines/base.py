"""One run of an encoder over videos, and what an engine is: a plug-in that makes the rows, here or elsewhere."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from stjepa_cli.core import plugins
from stjepa_cli.search.embedding import Embedded, Recipe
from stjepa_cli.search.encoder import Encoder
from stjepa_cli.search.reading import Item
from stjepa_cli.search.records import Column, Known


@dataclass(frozen=True)
class Job:
    """What to embed.

    Attributes:
        encoder: The encoder, loaded in this process, with its runtime.
        model: Its name.
        num_frames: Number of frames in a clip that was asked for, or None.
        column: The column that it fills.
        recipe: What vectors to make.
        items: The videos.
        known: Rows that are done, by id.
    """

    encoder: Encoder
    model: str
    num_frames: int | None
    column: Column
    recipe: Recipe
    items: Sequence[Item]
    known: Mapping[str, Known]


class Engine(ABC):
    """Embeds videos. A module of this folder exposes its class as `plugin`.

    Args:
        address: Address of a running cluster, for engines that have one.
    """

    def __init__(self, address: str | None = None) -> None:
        self.address = address

    def ready(self) -> AbstractContextManager[None]:
        """Return a block in which the engine can run; it is entered before a table is opened.

        Raises:
            NotReadyError: It needs a package that is not installed, or a cluster that does not answer.
        """
        return nullcontext()

    @abstractmethod
    def run(self, job: Job) -> Iterator[Embedded]:
        """Embed videos and yield what became of each, in their order, once for each group of its parts.

        Args:
            job: What to embed.

        Raises:
            StjepaError: Anything that ends the run and that the user can put right. A video that cannot be used does not.
        """


def open_engine(name: str, address: str | None = None) -> Engine:
    """Return the engine plug-in `name`.

    Raises:
        ConfigError: There is no such plug-in; the message lists those that exist.
    """
    engine: Engine = plugins.load("search.engines", name)(address)
    return engine
