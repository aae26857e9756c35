"""The condition on the time of the delivery: `now`.

Must never: look at a clock; the time is a fact that is given.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from milterapp.mail.envelope import Stage
from milterapp.mail.limits import LimitHit
from milterapp.rules.conditions import Direct
from milterapp.rules.facts import Facts

__all__ = ["DAYS", "Now", "parse_moment", "parse_times", "parse_zone"]

DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")


@dataclass(frozen=True, slots=True)
class Now(Direct):
    """The time of the first attempt to deliver. Everything that is said must hold: `weekday`, one or several of
    `monday` to `sunday`; `time`, such as `22:00-06:00`, the first minute in it and the last one not, one or several;
    `between`, two days (`[2026-08-01, 2026-08-15]`, both included) or two moments (`2026-08-01T12:00`). They are those
    of the time zone in `zone`, such as `Europe/Berlin`, else of this host's.
    """

    word = "now"
    stage = Stage.MAIL

    weekdays: tuple[int, ...] = ()
    times: tuple[tuple[int, int], ...] = ()
    between: tuple[datetime, datetime] | None = None
    zone: ZoneInfo | None = None

    def moment(self, facts: Facts) -> datetime:
        """Return the time in the zone; raises LimitHit where none was given."""
        if facts.now is None:
            raise LimitHit("the time is not known here")
        return facts.now.astimezone(self.zone) if self.zone is not None else facts.now

    def holds(self, facts: Facts) -> bool | None:
        """Return whether it is such a time."""
        now = self.moment(facts)
        minute = now.hour * 60 + now.minute
        wall = now.replace(tzinfo=None)
        return (
            (not self.weekdays or now.weekday() in self.weekdays)
            and (not self.times or any(_within(minute, *one) for one in self.times))
            and (self.between is None or self.between[0] <= wall < self.between[1])
        )

    def say(self) -> str:
        """Return the condition as a trace shows it."""
        words = [f"weekday is {' or '.join(DAYS[one] for one in self.weekdays)}"] if self.weekdays else []
        words += [f"time is {' or '.join(f'{_clock(a)}-{_clock(b)}' for a, b in self.times)}"] if self.times else []
        words += [f"between {self.between[0]} and {self.between[1]}"] if self.between else []
        words += [f"in {self.zone.key}"] if self.zone else []
        return f"{self.word} {' and '.join(words)}"

    def saw(self, facts: Facts) -> str:
        """Return the time."""
        now = self.moment(facts)
        return f"{DAYS[now.weekday()]} {now:%Y-%m-%d %H:%M %Z}".strip()


def _within(minute: int, first: int, last: int) -> bool:
    return first <= minute < last if first < last else minute >= first or minute < last


def _clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


def parse_times(text: str) -> tuple[int, int]:
    """Return the minutes of the day that `22:00-06:00` begins and ends with; raises ValueError."""
    try:
        first, last = (_minute(one) for one in text.split("-"))
    except ValueError:
        raise ValueError(f"found {text!r}, expected times such as 22:00-06:00") from None
    if first == last:
        raise ValueError(f"found {text!r}, expected two different times; without `time` it is the whole day")
    return first, last


def _minute(text: str) -> int:
    hour, _, minute = text.strip().partition(":")
    if not (hour.isascii() and hour.isdigit() and minute.isascii() and minute.isdigit() and len(minute) == 2):
        raise ValueError
    found = int(hour[:3]) * 60 + int(minute)
    if int(minute) > 59 or found > 24 * 60:
        raise ValueError
    return found


def parse_moment(text: str, *, last: bool) -> datetime:
    """Return a day or a moment, without a zone; last: of a day, the end of it. Raises ValueError."""
    try:
        found = datetime.fromisoformat(text.strip())
        found = found + timedelta(days=1) if last and len(text.strip()) <= 10 else found
    except (ValueError, OverflowError):
        raise ValueError(
            f"found {text!r}, expected a day or a moment, such as 2026-08-01 or 2026-08-01T12:00"
        ) from None
    if found.tzinfo is not None:
        raise ValueError(f"found {text!r}, expected it without a zone; `zone` names one")
    return found


def parse_zone(text: str) -> ZoneInfo:
    """Return a time zone of the IANA database by its name; raises ValueError."""
    try:
        return ZoneInfo(text)
    except (ValueError, OSError, LookupError):
        raise ValueError(f"found {text!r}, expected the name of a time zone such as Europe/Berlin") from None
