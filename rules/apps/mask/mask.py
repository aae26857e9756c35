"""Disposable addresses: one for each correspondent, in both directions, with the real address behind them hidden.

Give mask+SHOP@host to a shop; whoever writes there first is its one correspondent. Its mail reaches you from
mask+SHOP.KEY@host; what you answer there goes out from mask+SHOP@host, as a new message with its text alone.
Write to mask+SHOP-to-JOE=EXAMPLE.ORG@host to write first, and to mask+SHOP-off@host to close an address.
"""

import secrets

from milterapp.script import Address, Untrusted, confirm, route, stateless, store

OWNER = Address("owner@home.example")
ALIAS = "{user}+{alias:[a-z0-9]{1,20}}"
PEER = r"[a-z0-9][a-z0-9._+-]{0,63}@[a-z0-9][a-z0-9.-]{0,200}"
LONGEST = 9000  # characters of a text that goes out


@stateless
@route(ALIAS + "@{host}")
def arrive(mail, user, alias, host):
    """Somebody writes to an alias: pass it on to its owner, from an address that nobody else knows."""
    if not mail.sender or is_owner(mail):
        mail.keep()  # bounces and vacation notices: nobody else's to see
        return
    peer = mail.sender.lower().fullmatch(PEER)
    entry = store.get(f"alias/{alias}") or (peer and opened(alias, peer[0]))
    if not peer or entry["peer"] != peer[0] or entry["closed"]:
        mail.reject("5.1.1 There is no such address for you")
        return
    back = f"{user}+{alias}.{entry['key']}@{host}"
    mail.remove_header("DKIM-Signature")
    mail.set_header("From", f'"{peer[0].replace("@", " at ")}" <{back}>')
    mail.set_header("Reply-To", back)
    mail.forward(OWNER, sender=f"{user}+bounce@{host}")  # a notice of its failure would name the real address


@stateless
@route(ALIAS + ".{key:[0-9a-f]{16}}@{host}")
def answer(mail, user, alias, key, host):
    """The owner answers: a new message with the text alone, so that no header can tell who that is."""
    entry = store.get(f"alias/{alias}")
    if not is_owner(mail) or not entry or entry["key"] != key or entry["closed"]:
        mail.reject("5.1.1 There is no such address")
    elif mail.kinds & {"auto-reply", "bounce", "list", "bulk"}:
        mail.discard()
    else:
        write(mail, user, alias, host, entry)
        mail.discard()


@stateless
@route(ALIAS + "-to-{local:[a-z0-9][a-z0-9._-]{0,40}}={domain:[a-z0-9][a-z0-9.-]{0,60}}@{host}")
@route(ALIAS + "-{off:off}@{host}")
def order(mail, user, alias, host, local="", domain="", off=""):
    """The owner opens an alias for somebody, or closes one; the sender is easily forged, so the owner is asked."""
    if not is_owner(mail):
        mail.reject("5.1.1 There is no such address")
    elif off:
        confirm.ask(mail, then=close, alias=alias)
    else:
        confirm.ask(mail, then=begin, user=user, alias=alias, host=host, peer=f"{local}@{domain}")


def close(mail, alias):
    """Nothing goes through an alias any more."""
    store[f"alias/{alias}"] = (store.get(f"alias/{alias}") or opened(alias, "")) | {"closed": True}
    mail.reply(text=f"{alias} is closed.\n")


def begin(mail, user, alias, host, peer):
    """Write to somebody first."""
    entry = store.get(f"alias/{alias}") or opened(alias, peer)
    if entry["peer"] != peer or entry["closed"]:
        mail.reply(text=f"{alias} is somebody else's, or closed.\n")
        return
    write(mail, user, alias, host, entry)
    mail.reply(text=f"Sent. To write again: {user}+{alias}.{entry['key']}@{host}\n")


def opened(alias, peer):
    """Remember an alias's one correspondent."""
    store[f"alias/{alias}"] = entry = {"peer": peer, "key": secrets.token_hex(8), "closed": False}
    return entry


def write(mail, user, alias, host, entry):
    """Send the text of a mail of the owner's to the alias's correspondent."""
    own = f"{user}+{alias}@{host}"
    hidden = {OWNER.address: own, f"{user}+{alias}.{entry['key']}@{host}": own, entry["key"]: ""}
    subject, text = mail.subject[:300], mail.text[:LONGEST]
    for secret, shown in hidden.items():
        subject, text = without(subject, secret, shown), without(text, secret, shown)
    mail.send(to=entry["peer"], subject=subject, text=text, sender=own)


def without(text, secret, shown):
    """Return a text with another in the place of a secret one, in whatever case that is."""
    lower, secret = text.lower(), secret.lower()
    if len(lower) != len(text):
        text = lower  # a character whose small form is longer: places would not be the same
    found, at = Untrusted(""), 0
    while (there := lower.find(secret, at)) >= 0:
        found += text[at:there] + shown
        at = there + len(secret)
    return found + text[at:]


def is_owner(mail):
    """Return whether a mail says that it is the owner's."""
    return mail.sender.lower() == OWNER.address.lower()
