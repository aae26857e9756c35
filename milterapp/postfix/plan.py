"""What attaching milterapp changes, and what taking it out changes back: values in, values out.

Must never: run anything, or touch a line that is not ours; what an administrator changed since stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from milterapp.postfix.postconf import Service
from milterapp.postfix.wiring import KEEPERS, MILTER, SERVICES, VIRTUAL, Wanted

__all__ = ["Before", "Changes", "attach", "detach", "elements", "notes", "without_ours"]

_LISTS = ("smtpd_milters", "non_smtpd_milters")


@dataclass(frozen=True, slots=True)
class Before:
    """A setting of main.cf as it was, None where it was not there, and what we set in its place."""

    previous: str | None
    ours: str

    def to_json(self) -> dict[str, str | None]:
        """Return it as the record of an attachment keeps it."""
        return {"previous": self.previous, "ours": self.ours}


@dataclass(frozen=True, slots=True)
class Changes:
    """What to do to main.cf (None takes a setting out) and to master.cf; nothing at all where it is done already."""

    main: Mapping[str, str | None] = field(default_factory=dict)
    services: tuple[Service, ...] = ()
    gone: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.main or self.services or self.gone)


def without_ours(main: Mapping[str, str], ours: Mapping[str, Before]) -> dict[str, str]:
    """Return the settings of main.cf as they would be without milterapp.

    A setting that still is what we made it goes back to what it was; of a list of milters that was changed since, our
    element goes; any other setting that was changed since is the administrator's.
    """
    base = dict(main)
    for name, before in ours.items():
        if main.get(name, "") == before.ours and (name in main or not before.ours):
            restored = before.previous
        elif name in _LISTS and name in main:
            restored = ", ".join(one for one in elements(main[name]) if one != MILTER) or None
        else:
            continue
        if restored is None:
            base.pop(name, None)
        else:
            base[name] = restored
    return base


def attach(
    main: Mapping[str, str], services: Mapping[str, Service], base: Mapping[str, str], goal: Wanted
) -> tuple[Changes, dict[str, Before]]:
    """Return what remains to be done to reach the goal, and what to remember of it.

    What was ours in `main` and is not wanted any more (another door) goes back to what it is in `base`; services of
    ours that nothing wants any more go.
    """
    settings = goal.settings()
    left = {name: base.get(name) for name in main if name not in settings and main[name] != base.get(name)}
    changes = Changes(
        main={**left, **{name: value for name, value in settings.items() if main.get(name) != value}},
        services=tuple(one for one, _ in goal.services if not _same(services.get(one.key), one)),
        gone=tuple(
            sorted({one.key for one in services.values() if _is_ours(one)} - {one.key for one, _ in goal.services})
        ),
    )
    return changes, {name: Before(base.get(name), value) for name, value in settings.items()}


def detach(
    main: Mapping[str, str],
    services: Mapping[str, Service],
    ours: Mapping[str, Before],
    *,
    keep_keepers: bool,
) -> Changes:
    """Return what takes milterapp out. keep_keepers: leave the services that mail in the queue still names."""
    base = without_ours(main, ours)
    stay = KEEPERS if keep_keepers else ()
    return Changes(
        main={name: base.get(name) for name in ours if main.get(name) != base.get(name)},
        gone=tuple(one.key for one in services.values() if _is_ours(one) and one.name not in stay),
    )


def elements(value: str, separators: str = ", \t\r\n") -> list[str]:
    """Return the elements of a list of main.cf: separators part them, braces hold together (postconf(5))."""
    found, depth, current = [], 0, ""
    for char in value:
        depth += (char == "{") - (char == "}")
        if depth <= 0 and char in separators:
            found.append(current)
            current = ""
        else:
            current += char
    return [one for one in [*found, current] if one]


def notes(main: Mapping[str, str], services: Mapping[str, Service], *, virtual: bool = False) -> list[str]:
    """Return what of this Postfix goes round milterapp, one sentence each: an administrator may want that, or not.

    virtual: its virtual domains are about to be attached.
    """
    found: list[str] = []
    for one in services.values():
        if one.name in SERVICES:
            continue
        found += [
            f"master.cf: {one.key} sets {name} itself: what comes in there passes no in-line rules"
            for name in _LISTS
            if f"{name}=" in one.command.replace(" ", "")
        ]
    transport = main.get("local_transport", "")
    if transport and transport.partition(":")[0] != "local":
        found.append(f"main.cf: local_transport = {transport}: local mail does not reach local(8), nor personal rules")
    if main.get("virtual_mailbox_domains"):
        transport = main.get("virtual_transport", "virtual")
        if not virtual and not transport.startswith(VIRTUAL):
            found.append(
                f"main.cf: virtual_mailbox_domains are delivered by {transport}: they pass no personal rules "
                "(delivery.recipients, milterapp.yaml(5))"
            )
    return found


def _is_ours(one: Service) -> bool:
    return one.name in SERVICES and one.kind == "unix"


def _same(one: Service | None, other: Service) -> bool:
    return one is not None and one.line().replace("{ ", "{").replace(" }", "}") == other.line().replace(
        "{ ", "{"
    ).replace(" }", "}")
