"""A value computed when first asked for, and kept: nothing of a message is read that no rule asks about.

Must never: take a lock (workers are threaded, and one slow message must not hold up the others).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

from milterapp.mail.limits import LimitHit

__all__ = ["Lazy"]

T = TypeVar("T")


class Lazy(Generic[T]):
    """A property that is computed once. A LimitHit is kept too: the bound is not paid for again by the next rule."""

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self.compute = compute
        self.name = compute.__name__
        self.__doc__ = compute.__doc__

    @overload
    def __get__(self, instance: None, owner: type) -> Lazy[T]: ...
    @overload
    def __get__(self, instance: object, owner: type) -> T: ...
    def __get__(self, instance: object | None, owner: type) -> T | Lazy[T]:
        if instance is None:
            return self
        known = instance.__dict__
        hit = known.get("limit hit: " + self.name)
        if hit is not None:
            raise LimitHit(hit)
        try:
            value = known[self.name] = self.compute(instance)
        except LimitHit as limit:
            known["limit hit: " + self.name] = str(limit)
            raise
        return value
