"""A mailing list: subscribe, post, unsubscribe, each once its sender has confirmed it; bounces; an archive.

Write to lists+dev-subscribe@host, lists+dev@host and lists+dev-unsubscribe@host. A subscriber's state is MEMBER, kept
for each list; the table of members has what sending needs.
"""

import secrets

from milterapp.script import confirm, route, stateless, store

LISTS = {"dev": "Development", "news": "News"}
TRUSTED = ""  # our mail servers' name in Authentication-Results: their dmarc=pass spares a subscriber the question
HARD = 2  # bounces for good after which nothing is sent to an address
MOST = 20  # subscribers: delivery.script_recipients
LIST = "{user}+{list:" + "|".join(LISTS) + "}"
JOIN = "-{action:subscribe|unsubscribe}@{host}"


@route(LIST + JOIN, per="list")
@route(LIST + "@{host}", per="list")
def START(mail, user, list, host, action="post"):
    if refused(mail):
        return
    if action == "subscribe":
        confirm.ask(mail, then=join, template="confirm.txt", list=list, user=user, host=host, action=action)
    else:
        mail.reject(f"5.7.1 You are no subscriber; write to {user}+{list}-subscribe@{host}")


@route(LIST + JOIN, per="list")
@route(LIST + "@{host}", per="list")
def MEMBER(mail, user, list, host, action="post"):
    if refused(mail):
        return
    then = {"subscribe": join, "unsubscribe": leave, "post": post}[action]
    if action == "post" and authentic(mail):
        post(mail, list, user, host, action)
    else:
        confirm.ask(mail, then=then, template="confirm.txt", list=list, user=user, host=host, action=action)


@stateless
@route(LIST + "-bounce-{key:[0-9a-f]{16}}@{host}")
def bounced(mail, user, list, key, host):
    """A message to a subscriber has come back; the key says whose."""
    mail.discard()
    members = store.get(f"members/{list}", {})
    address = next((one for one, entry in members.items() if entry["key"] == key), None)
    if address and not mail.sender and mail.bounce and mail.bounce.hard:
        members[address]["bounces"] += 1
        store[f"members/{list}"] = members


def join(mail, list, user, host, action):
    """A sender has confirmed that it subscribes, or that its disabled address works again."""
    members, address = store.get(f"members/{list}", {}), mail.proven.address.lower()
    if address not in members and len(members) >= MOST:
        mail.reply(text=f"{list} has no place left.\n")
        return None
    known = members.get(address, {"key": secrets.token_hex(8)})
    store[f"members/{list}"] = members | {address: known | {"bounces": 0}}
    mail.reply(text=f"You are a subscriber of {list}. To leave, write to {user}+{list}-unsubscribe@{host}.\n")
    return MEMBER


def leave(mail, list, user, host, action):
    """A subscriber has confirmed that it leaves."""
    members = store.get(f"members/{list}", {})
    members.pop(mail.proven.address.lower(), None)
    store[f"members/{list}"] = members
    mail.reply(text=f"You are no subscriber of {list} any more.\n")
    return START


def post(mail, list, user, host, action):
    """Send a post to every subscriber whose address works, and file it."""
    members, own = store.get(f"members/{list}", {}), f"{user}+{list}"
    mail.set_header("List-Id", f"{LISTS[list]} <{list}.{user}.{host}>")
    mail.set_header("List-Post", f"<mailto:{own}@{host}>")
    mail.set_header("List-Subscribe", f"<mailto:{own}-subscribe@{host}>")
    mail.set_header("List-Unsubscribe", f"<mailto:{own}-unsubscribe@{host}>")
    mail.set_header("List-Help", f"<mailto:{user}@{host}>")
    mail.set_header("Precedence", "list")
    for address, entry in members.items():
        if entry["bounces"] < HARD:
            mail.forward(address, copy=True, sender=f"{own}-bounce-{entry['key']}@{host}")
    mail.file(f"Lists/{list}")


def refused(mail):
    """Refuse what a list or a machine sent, and what is not from the one who sent it; return whether."""
    if mail.kinds & {"list", "bulk"}:
        mail.reject("5.4.6 This came from a list already")
    elif mail.kinds & {"auto-reply", "bounce"}:
        mail.discard()
    elif len(mail.from_) != 1 or mail.from_[0].address.lower() != mail.sender.lower() or mail.malformed:
        mail.reject("5.7.1 The sender and From differ")
    else:
        return False
    return True


def authentic(mail):
    """Return whether our own mail servers say that From is real."""
    results = mail.header("Authentication-Results")
    return bool(TRUSTED) and results.split(";")[0].strip() == TRUSTED and "dmarc=pass" in results
