"""When two texts are the same to a rule: Unicode composition never counts, case only where `case: true` asks.

Must never: change a text that goes anywhere but into a comparison. It is lenient, as conditions want it: `weiß@` is
`weiss@` to them, which may be two people. So mail goes to an address of a rule or list, never to what compared like it.
"""

from __future__ import annotations

import unicodedata

from milterapp.mail.domains import ascii_domain
from milterapp.mail.envelope import split_address, split_detail

__all__ = ["address_forms", "domain_levels", "fold", "plain"]


def plain(text: str) -> str:
    """Return the text as patterns and `case: true` see it: composed (NFC)."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def fold(text: str) -> str:
    """Return the text as comparisons without regard to case see it."""
    return text.lower() if text.isascii() else unicodedata.normalize("NFC", text.casefold())


def domain_levels(domain: str) -> list[str]:
    """Return a folded domain and every domain above it, nearest first; at most 128 of them."""
    levels = [domain]
    at = domain.find(".")
    while at >= 0 and len(levels) < 128:
        levels.append(domain[at + 1 :])
        at = domain.find(".", at + 1)
    return levels


def address_forms(address: str, delimiter: str, *, case: bool = False) -> tuple[str, ...]:
    """Return the ways an address may be written in a rule to mean this one: as it stands, and without its detail."""
    local, domain = split_address(address)
    local = plain(local) if case else fold(local)
    domain = ascii_domain(domain)
    user, detail = split_detail(local, delimiter) if delimiter else (local, "")
    if not detail and user == local:
        return (f"{local}@{domain}",)
    return f"{local}@{domain}", f"{user}@{domain}"
