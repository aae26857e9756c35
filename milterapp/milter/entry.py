"""What a message may not bring along: header fields of ours, and findings in the name of the site's own servers.

Must never: take away a field that anybody else may write.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from milterapp.mail import auth
from milterapp.mail.message import Mail

__all__ = ["BEFORE", "OURS", "Entry", "Trust", "forbidden"]

OURS = "x-milterapp-"  # how the names of our own fields begin
BEFORE = "milters"  # in milter.results_from: milters that Postfix asks before us


@dataclass(frozen=True, slots=True)
class Entry:
    """What is to be taken away. fields: their places in the header, from 0; occurrences: name and which, from 1."""

    fields: frozenset[int] = frozenset()
    occurrences: tuple[tuple[str, int], ...] = ()


NOTHING = Entry()


def forbidden(mail: Mail, authserv_ids: Iterable[str]) -> Entry:
    """Return the fields to be taken away: X-Milterapp-*, and Authentication-Results of these ids (RFC 8601, 5)."""
    forged = {number for one in authserv_ids for number in auth.foreign_or_forged(mail, one)}
    if not forged and not any(name.startswith(OURS) for name in mail.names):
        return NOTHING
    places, occurrences = [], []
    counts: dict[str, int] = {}
    for place, field in enumerate(mail.header):
        name = field.name.lower()
        counts[name] = counts.get(name, 0) + 1
        if name.startswith(OURS) or (name == auth.FIELD.lower() and counts[name] in forged):
            places.append(place)
            occurrences.append((field.name, counts[name]))
    return Entry(frozenset(places), tuple(occurrences))


class Trust:
    """Whose Authentication-Results in the site's name stay.

    results_from: networks and addresses of clients, and BEFORE. Raises ValueError with a plain sentence.
    """

    def __init__(self, authserv_ids: Sequence[str] = (), results_from: Sequence[str] = ()) -> None:
        self._ids = tuple(authserv_ids)
        self._all = BEFORE in results_from
        self._networks = [ipaddress.ip_network(one, strict=False) for one in results_from if one != BEFORE]

    def suspects(self, client: str) -> tuple[str, ...]:
        """Return the ids in whose name this client may not speak. client: its IP address, "" for none."""
        if not self._ids or self._all:
            return ()
        try:
            address = ipaddress.ip_address(client.removeprefix("IPv6:"))
        except ValueError:
            return self._ids
        mapped = getattr(address, "ipv4_mapped", None)
        return () if any((mapped or address) in one for one in self._networks) else self._ids
