"""What the parts of the lab have in common: used as a context manager they are started, and stopped whatever happens."""

from __future__ import annotations

from types import TracebackType
from typing import Self


class Part:
    """A part has ``start`` and ``stop``; a start that fails half-way is cleaned up too."""

    def start(self) -> Self:
        raise NotImplementedError

    def stop(self) -> object:
        raise NotImplementedError

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
