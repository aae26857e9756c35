"""Messages beside these tests, read as they are."""

from __future__ import annotations

from pathlib import Path

from milterapp.mail.message import Mail

HERE = Path(__file__).parent
NAMES = sorted(path.stem for path in HERE.glob("*.eml"))


def raw(name: str) -> bytes:
    """Return the bytes of tests/mail/NAME.eml."""
    return (HERE / f"{name}.eml").read_bytes()


def mail(name: str) -> Mail:
    """Return the message tests/mail/NAME.eml."""
    return Mail(raw(name))


def everything(one: Mail) -> None:
    """Ask a message everything that can be asked; only LimitHit may come of it."""
    for field in one.header:
        assert field.raw
        assert field.value is not None
        field.text.encode()
        field.raw_text.encode()
    assert one.body is not None
    _ = one.subject, one.list_ids, one.message_id, one.references, one.kinds, one.header_faults, one.size
    for address in one.addresses("from", "to", "cc", "bcc", "reply-to"):
        address.display.encode()
        address.address.encode()
    one.text.encode()
    one.html.encode()
    for attachment in one.attachments:
        assert attachment.size == len(attachment.content)
        for name in attachment.names + attachment.extensions + attachment.member_names:
            name.encode()
    for host in one.url_hosts:
        host.encode()
    assert all(reason.isascii() for reason in one.malformed)
