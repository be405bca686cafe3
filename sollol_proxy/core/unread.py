"""Sequences that are made when somebody reads them: of most decisions nobody does."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import TypeVar, overload

T = TypeVar("T")


class MadeWhenRead(Sequence[T]):
    """Stands for a tuple, and is equal to it."""

    __slots__ = ()

    @abstractmethod
    def made(self) -> tuple[T, ...]:
        """The items."""

    def __len__(self) -> int:
        return len(self.made())

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[T, ...]: ...
    def __getitem__(self, index: int | slice) -> T | tuple[T, ...]:
        return self.made()[index]

    def __iter__(self) -> Iterator[T]:
        return iter(self.made())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self.made() == tuple(other)

    def __hash__(self) -> int:
        return hash(self.made())
