"""The anonymiser of rules/apps/mask under blows: twenty correspondents, their aliases, and an owner nobody may see."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from milterapp.script import stored
from tests.postfix.mailboxes import header
from tests.soak.talk import Order, Talk, text_of

__all__ = ["OWNER", "mask"]

OWNER = "dora@owner.example"
_HIDDEN = b"owner.example"  # what no byte that reaches a correspondent holds, in no case
_PEERS = [f"s{number}@home.example" for number in range(20)]
_OWNERS = {"from": f"Dora Owner <{OWNER}>", "x_originating_host": "pc.owner.example"}  # what her mail program tells


@dataclass(frozen=True, slots=True)
class _Due:
    """What a message must become: one letter to somebody, with that text; or, with to="", a refusal of its sender."""

    to: str
    text: str = ""
    heard: bool = True  # Postfix said 250; otherwise it may be there or not
    alias: str = ""


@dataclass
class _Model:
    """Who each alias belongs to, which are closed, what must have arrived, and where the owner can answer."""

    peers: dict[str, str] = field(default_factory=dict)
    closed: set[str] = field(default_factory=set)
    due: dict[str, _Due] = field(default_factory=dict)
    ways: dict[str, str] = field(default_factory=dict)  # an address with a key, to its alias

    def open_alias(self, number: int) -> str:
        """Return the alias that a correspondent writes to: the first of its own that is not closed."""
        return next(one for one in (f"a{number}g{turn}" for turn in range(1000)) if one not in self.closed)

    def promise(self, tokens: list[str], to: str, text: str = "{0}", alias: str = "") -> None:
        """Note what becomes of a message, and of the attempts before that may have been taken. text: {0} its own."""
        for token in tokens:
            said = text.replace("{0}", f"text {token} end\n")
            self.due[token] = _Due(to, said, heard=token == tokens[-1], alias=alias)


def mask(talk: Talk, more: Callable[[], bool]) -> None:
    """Letters in both directions at once; every third round the owner opens and closes aliases."""
    model, rounds = _Model(), 0
    while more():
        rounds += 1
        (_letters if rounds % 3 else _orders)(talk, model)
        _judge(talk, model)


def _letters(talk: Talk, model: _Model) -> None:
    """Have correspondents write to aliases, one in six to another's, and the owner answer, one in six forged."""
    meant: list[tuple[Order, str, str, str]] = []
    before = sorted(model.peers)
    for number, peer in enumerate(_PEERS):
        alias = talk.dice.choice(before) if before and talk.dice.random() < 0.17 else model.open_alias(number)
        theirs = alias not in model.closed and model.peers.setdefault(alias, peer) == peer
        order = Order(peer, f"bob+{alias}@example.org", "and more\n")
        meant.append((order, OWNER if theirs else "", "{0}and more\n", alias))
    for back in talk.dice.sample(sorted(model.ways), min(len(model.ways), 12)):
        alias = model.ways[back]
        own = f"bob+{alias}@example.org"
        quoted = "\nOn Friday <{back}> wrote to {owner}:\n> hello {shouted}\n-- \n{owner}\n"
        text = quoted.format(back=back, owner=OWNER, shouted=OWNER.upper())
        if talk.dice.random() < 0.17:  # somebody has learnt the address, and still is not the owner
            meant.append((Order(talk.dice.choice(_PEERS), back), "", "", alias))
        else:
            shown = "{0}" + quoted.format(back=own, owner=own, shouted=own)
            order = Order(OWNER, back, text, _OWNERS, "pc.owner.example")
            meant.append((order, "" if alias in model.closed else model.peers[alias], shown, alias))
    talk.dice.shuffle(meant)
    said = talk.say_all([order for order, *_ in meant])
    for tokens, (_, to, text, alias) in zip(said, meant, strict=True):
        model.promise(tokens, to, text, alias)


def _orders(talk: Talk, model: _Model) -> None:
    """Have the owner close aliases, and write first to somebody; most questions about it are answered."""
    closing = {alias: "" for alias in sorted(model.peers) if talk.dice.random() < 0.1}
    number = len(model.due)
    opening = {f"o{number}x{one}": talk.dice.choice(_PEERS) for one in range(3)}
    orders = []
    for alias, peer in (closing | opening).items():
        to = f"bob+{alias}-to-{peer.replace('@', '=')}@example.org" if peer else f"bob+{alias}-off@example.org"
        orders.append(Order(OWNER, to, f"I am {OWNER}\n", _OWNERS, "pc.owner.example"))
    said = talk.say_all(orders)
    found, answers, sure = talk.questions(), [], []
    for (alias, peer), (*_, token) in zip((closing | opening).items(), said, strict=True):
        talk.expect(f"no question about {token}, {alias}", token in found)
        if token in found and talk.dice.random() < 0.85:
            answers.append(Order(OWNER, found[token], "", _OWNERS, "pc.owner.example"))
            sure.append((alias, peer, token))
    for (alias, peer, token), tokens in zip(sure, talk.say_all(answers), strict=True):
        own = f"bob+{alias}@example.org"
        heads = [f"Re: {one}" for one in tokens]  # whichever of them was the answer
        told = [
            one for one in talk.site.elsewhere() if header(one, "Subject")[:1] and header(one, "Subject")[0] in heads
        ]
        talk.once(f"word of {token}", told)
        talk.expect(f"word of {token} to others", all(header(one, "X-Original-To") == [OWNER] for one in told))
        if not peer:
            model.closed.add(alias)
        else:
            model.peers[alias] = peer
            model.promise([token], peer, "{0}I am " + own + "\n", alias)
            for one in told:
                model.ways |= dict.fromkeys(re.findall(r"bob\+\S+\.[0-9a-f]{16}@example\.org", text_of(one)), alias)


def _judge(talk: Talk, model: _Model) -> None:
    """Hold all that left the host, and what is stored, against the model."""
    letters: dict[str, list[bytes]] = defaultdict(list)
    notices: dict[str, set[str]] = defaultdict(set)
    keys = {way.rpartition(".")[0].rpartition("@")[0].rpartition(".")[2] for way in model.ways}
    for one in talk.site.elsewhere():
        (to,) = header(one, "X-Original-To")
        (subject,) = header(one, "Subject") or [""]
        if header(one, "Content-Type")[:1] and "multipart/report" in header(one, "Content-Type")[0]:
            for token in re.findall(r"^Subject: ([0-9]+\.[0-9]+)\r?$", one.decode(), re.MULTILINE):
                notices[token].add(to)
        elif re.fullmatch(r"[0-9]+\.[0-9]+", subject):
            letters[subject].append(one)
            talk.expect(f"{subject} shows a key", to == OWNER or not any(key.encode() in one for key in keys))
        if to != OWNER:
            text = b"" if b"multipart/report" in one else text_of(one).encode()
            talk.expect(f"the owner in {subject} to {to}", _HIDDEN not in (one + text).lower())
    for token, found in letters.items():
        due = model.due.get(token)
        talk.expect(f"{token} reached somebody", due and due.to)
        if due and due.to:
            _letter(talk, model, token, due, found)
    for token, due in model.due.items():
        sender = talk.sent[token]
        if due.to:
            talk.expect(f"{token} to {due.to} is lost", token in letters or not due.heard)
            talk.expect(f"{token} came back", token not in notices)
        else:
            talk.expect(f"no notice of {token} to {sender}", sender in notices[token] or not due.heard)
            talk.expect(f"a notice of {token} to others", notices[token] <= {sender})
    entries = {key.removeprefix("alias/"): stored.from_text(value) for key, value in talk.stored().items()}
    known = {alias: (entry["peer"], entry["closed"]) for alias, entry in entries.items()}
    talk.expect("aliases", known == {alias: (peer, alias in model.closed) for alias, peer in model.peers.items()})
    talk.expect("mail kept by bob", all(b"+confirm-" in one for one in talk.site.inbox("bob")))


def _letter(talk: Talk, model: _Model, token: str, due: _Due, found: list[bytes]) -> None:
    """Hold a letter against what it should be, and learn where the owner can answer it."""
    talk.once(f"{token} to {due.to}", found)
    for one in found:
        to, text = header(one, "X-Original-To"), text_of(one).replace("\r\n", "\n")
        talk.expect(f"{token} reached {to}, not {due.to}", to == [due.to])
        talk.expect(f"{token} says {text!r}, not {due.text!r}", text == due.text)
        if due.to == OWNER:
            (back,) = header(one, "Reply-To") or [""]
            talk.expect(
                f"{token} is from {back}", re.fullmatch(rf"bob\+{due.alias}\.[0-9a-f]{{16}}@example\.org", back)
            )
            talk.expect(f"{token} bounces to its sender", header(one, "Return-Path") == ["<bob+bounce@example.org>"])
            model.ways[back] = due.alias
        else:
            talk.expect(f"{token} is not from its alias", header(one, "From") == [f"bob+{due.alias}@example.org"])
