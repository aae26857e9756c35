"""The envelope: what the SMTP session said, before and apart from the message (RFC 5321 section 2.3.1).

Must never: parse a header; what stands in the message is not the envelope.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

__all__ = ["Envelope", "Stage", "believed", "split_address", "split_detail", "stated"]

_STATED = (
    "rfc822;"  # before what an ORCPT said, which is the sender's word where it is not Postfix's (RFC 3461 section 4.2)
)


class Stage(IntEnum):
    """The steps of an SMTP session in their order; a later stage knows all that an earlier one knew."""

    CONNECT = 0
    HELO = 1
    MAIL = 2
    RCPT = 3
    HEADERS = 4
    BODY = 5

    @property
    def word(self) -> str:
        """Return the stage as logs, traces and `--json` write it, `connect` to `body`."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Envelope:
    """What is known of a session; a field of a stage not yet reached holds its default.

    client: IP address as text without brackets, "" where the message was submitted on this host (sendmail(1)).
    client_name: verified PTR name, "" where there is none.
    sender: envelope sender without angle brackets, "" for the null sender.
    login: SASL user, "" where the client did not authenticate.
    recipients: envelope recipients, accepted so far, without angle brackets, as they came.
    original_recipient: before alias expansion, per-recipient edge only.
    """

    client: str = ""
    client_name: str = ""
    local: bool = False
    helo: str = ""
    sender: str = ""
    login: str = ""
    tls: bool = False
    recipients: tuple[str, ...] = ()
    original_recipient: str = ""
    queue_id: str = ""


def stated(original: str) -> str:
    """Return an original recipient as it stands, believed or not: enough to tell two copies of a message apart."""
    return original.removeprefix(_STATED)


def believed(original: str, recipient: str) -> str:
    """Return the original recipient where Postfix named it, the recipient where an ORCPT did: anybody can write one."""
    return recipient if original.startswith(_STATED) else original


def split_address(address: str) -> tuple[str, str]:
    """Return (local part, domain) of an envelope address; the domain is "" where there is no `@`."""
    local, at, domain = address.rpartition("@")
    return (local, domain) if at else (domain, "")


def split_detail(local: str, delimiters: str) -> tuple[str, str]:
    """Return (user, extension) of a local part as Postfix's recipient_delimiter does: the first delimiter splits.

    One that begins with a delimiter is not split, nor are `owner-…` and `…-request` where `-` is the delimiter.
    """
    lowered = local.lower()
    if lowered in ("mailer-daemon", "double-bounce") or (
        "-" in delimiters and (lowered.startswith("owner-") or lowered.endswith("-request"))
    ):
        return local, ""
    at = next((at for at, char in enumerate(local) if char in delimiters), 0)
    return (local[:at], local[at + 1 :]) if at else (local, "")
