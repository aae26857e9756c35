"""Tests of milterapp.milter.session and conversation: the real service, spoken to over the milter protocol."""

from __future__ import annotations

import re
import struct
from typing import Any

import pytest

from tests.milter.conftest import Serve
from tests.milter.peer import ALL_STEPS, LEADING_BLANK, OLD_STEPS, SKIP, Peer

ALICE, BOB, CAROL = b"<alice@example.org>", b"<bob@example.org>", b"<carol@example.org>"

RULES = """\
rules:
  - name: a client
    if: {client: 192.0.2.66}
    then: {reject: "5.7.1 Not from you"}
  - name: a name
    if: {helo: {contains: bad}}
    then: {defer: "4.7.1 Say another name"}
  - name: a friend
    if: {sender: friend@example.net}
    then: accept
  - name: an enemy
    if: {sender: enemy@example.net}
    then: discard
  - name: bob
    if: {recipient: bob@example.org}
    then: {reject: "5.7.2 100% no"}
  - name: carol
    if: {recipient: carol@example.org}
    then: discard
  - name: no offers
    if: {subject: {contains: offer}}
    then: {reject: "5.7.3 No offers"}
  - name: marked
    if: {subject: {contains: invoice}}
    then:
      - prefix_subject: "[x]"
      - add_header: {X-Site: caf\u00e9}
      - remove_header: X-Tracking
  - name: a look
    if: {subject: {contains: odd}}
    then: hold
  - name: watching
    observe: true
    if: {subject: {contains: watched}}
    then: {reject: "5.7.4 Never said"}
  - name: the void
    if: {body: {contains: void}}
    then: discard
"""


def subject(text: str) -> dict[str, Any]:
    """Return the arguments of a message with that subject."""
    return {"fields": [(b"From", b"a@example.net"), (b"Subject", text.encode())]}


@pytest.mark.parametrize(
    ("connect", "helo", "message", "want", "event"),
    [
        pytest.param({}, b"x", {}, ("eom", "a", ""), {"verdict": "none"}, id="no rule"),
        pytest.param(
            {"ip": "192.0.2.66"},
            b"x",
            None,
            ("helo", "y", "550 5.7.1 Not from you"),
            {"verdict": "reject", "stage": "connect", "queue_id": "NOQUEUE", "rules": ["a client"]},
            id="client refused, in the rule's words",
        ),
        pytest.param(
            {},
            b"bad.example",
            None,
            ("helo", "y", "451 4.7.1 Say another name"),
            {"verdict": "defer", "stage": "helo"},
            id="helo deferred",
        ),
        pytest.param(
            {},
            b"x",
            {"sender": b"<friend@example.net>", **subject("an offer")},
            ("eoh", "a", ""),
            {"verdict": "accept", "stage": "mail", "queue_id": "4cXyZ01", "sender": "<friend@example.net>"},
            id="accepted by its envelope, and the body is not sent",
        ),
        pytest.param(
            {},
            b"x",
            {"sender": b"<enemy@example.net>"},
            ("data", "d", ""),
            {"verdict": "discard", "stage": "mail", "queue_id": "4cXyZ01"},
            id="discarded by its envelope",
        ),
        pytest.param(
            {},
            b"x",
            {"recipients": [BOB]},
            ("rcpt", "y", "550 5.7.2 100%% no"),
            {"verdict": "reject", "stage": "rcpt", "recipients": ["bob@example.org"]},
            id="the only recipient refused",
        ),
        pytest.param(
            {},
            b"x",
            {"recipients": [CAROL]},
            ("data", "d", ""),
            {"recipients": ["carol@example.org"]},
            id="the only recipient discarded",
        ),
        pytest.param(
            {},
            b"x",
            subject("an offer"),
            ("eoh", "y", "550 5.7.3 No offers"),
            {"verdict": "reject", "stage": "headers"},
            id="refused by its header, before the body",
        ),
        pytest.param(
            {},
            b"x",
            subject("watched"),
            ("eom", "a", ""),
            {"verdict": "none", "would_have": ["watching: reject"]},
            id="observed",
        ),
        pytest.param(
            {}, b"x", {"body": b"into the void\r\n"}, ("eom", "d", ""), {"stage": "body"}, id="discarded by its body"
        ),
        pytest.param(
            {"ip": "", "port": 0, "name": "localhost"},
            b"x",
            {"recipients": [ALICE, BOB]},
            ("eoh", "y", "550 5.7.2 100%% no"),
            {"client": "local", "verdict": "reject"},
            id="of a family that is no network",
        ),
    ],
)
def test_verdicts(
    serve: Serve,
    connect: dict[str, Any],
    helo: bytes,
    message: dict[str, Any] | None,
    want: tuple[str, str, str],
    event: dict[str, Any],
) -> None:
    """Each verdict is said at the earliest step that can carry it, and logged once with who it was for."""
    service = serve(RULES)
    peer = service.peer()
    assert peer.connect(**connect).code in "-c"
    answer = peer.helo(helo)
    if message is None:
        got = ("helo", answer.code, answer.text)
    else:
        outcome = peer.message(**message)
        got = (outcome.at, outcome.code, outcome.text)
    peer.quit()
    assert got == want
    logged = service.message_event()
    assert {key: logged.get(key) for key in event} == event


def test_each_recipient_for_itself(serve: Serve) -> None:
    """One recipient is refused and one removed; the message goes on for the third, and the log says so."""
    service = serve(RULES)
    peer = service.peer()
    peer.connect()
    outcome = peer.message(recipients=[ALICE, BOB, CAROL])
    assert {name: one.code for name, one in outcome.recipients.items()} == {
        "<alice@example.org>": "c",
        "<bob@example.org>": "y",
        "<carol@example.org>": "c",
    }
    assert (outcome.at, outcome.code, outcome.edits) == ("eom", "a", [("-", b"<carol@example.org>\0")])
    event = service.message_event()
    assert (event["refused"], event["removed"]) == (["bob@example.org"], ["carol@example.org"])


@pytest.mark.parametrize(
    ("steps", "blank"), [(ALL_STEPS, b" "), (ALL_STEPS & ~LEADING_BLANK, b"")], ids=["ours", "the server's"]
)
def test_edits(serve: Serve, steps: int, blank: bytes) -> None:
    """Edits go out by ordinal, deletions from the highest down, as ASCII, with the one blank after the colon."""
    fields = [(b"X-Tracking", b"1"), (b"Subject", b"invoice"), (b"x-tracking", b"2")]
    peer = serve(RULES).peer(steps=steps)
    peer.connect()
    outcome = peer.message(fields=fields)
    assert outcome.code == "a"
    got = [(code, data.lower()) for code, data in outcome.edits]
    assert got == [
        ("m", struct.pack("!I", 2) + b"x-tracking\0\0"),
        ("m", struct.pack("!I", 1) + b"subject\0" + blank + b"[x] invoice\0"),
        ("m", struct.pack("!I", 1) + b"x-tracking\0\0"),
        ("h", b"x-site\0" + blank + b"=?utf-8?b?y2fmw6k=?=\0"),
    ]


@pytest.mark.parametrize(
    "sender", [b"<a@example.net>", b"<friend@example.net>"], ids=["by the rules", "accepted early"]
)
def test_entry(serve: Serve, sender: bytes) -> None:
    """Fields of ours are taken away before anything else, and no rule sees them; the body is skipped all the same."""
    rules = RULES + "  - name: ours\n    if: {header: {X-Milterapp-Score: {exists: true}}}\n    then: discard\n"
    peer = connected(serve(rules))
    fields = [
        (b"X-Milterapp-Score", b"1"),
        (b"Subject", b"invoice"),
        (b"X-MILTERAPP-Score", b"2"),
        (b"X-Tracking", b"3"),
    ]
    outcome = peer.message(fields=fields, sender=sender)
    assert (outcome.at, outcome.code) == ("eom", "a")
    assert [data.lower() for _, data in outcome.edits][:2] == [
        struct.pack("!I", 2) + b"x-milterapp-score\0\0",
        struct.pack("!I", 1) + b"x-milterapp-score\0\0",
    ]
    assert len(outcome.edits) == (2 if b"friend" in sender else 5)


@pytest.mark.parametrize(
    ("results_from", "believed"),
    [pytest.param([], False, id="from nobody"), pytest.param(["192.0.2.0/24"], True, id="from that client")],
)
def test_forged_results(serve: Serve, results_from: list[str], *, believed: bool) -> None:
    """What a message says in the name of the site's servers is believed from whom the site says, else taken away."""
    rules = "rules:\n  - name: passed\n    if: {auth: {dmarc: pass}}\n    then:\n      - add_header: {X-Passed: yes}\n"
    peer = connected(serve(rules, authserv_ids=["mx.example.org"], milter={"results_from": results_from}))
    fields = [
        (b"Authentication-Results", b"other.example; dmarc=fail"),
        (b"Authentication-Results", b"mx.example.org; dmarc=pass header.from=bank.example"),
    ]
    outcome = peer.message(fields=fields)
    assert outcome.edits == (
        [("h", b"X-Passed\0 yes\0")] if believed else [("m", struct.pack("!I", 2) + b"Authentication-Results\0\0")]
    )


def test_entry_of_what_could_not_be_decided(serve: Serve) -> None:
    """What is accepted because it could not be decided is cleaned all the same."""
    peer = connected(serve(RULES, milter={"on_error": "accept"}))
    outcome = peer.message(fields=[(b"X-Milterapp-Score", b"1"), (b"Subj\xff", b"x")])
    assert (outcome.at, outcome.code) == ("eom", "a")
    assert outcome.edits == [("m", struct.pack("!I", 1) + b"X-Milterapp-Score\0\0")]


def test_hold(serve: Serve) -> None:
    """Hold is the quarantine, with the rule as its reason; the body is sent only as far as a rule wants it."""
    peer = serve(RULES).peer()
    peer.connect()
    outcome = peer.message(**subject("odd"), body=b"x" * 200_000)
    assert (outcome.code, outcome.edits) == ("a", [("q", b"rule a look\0")])


class TestNegotiation:
    """What is asked for is what the rules need."""

    @pytest.mark.parametrize(
        ("rule", "wanted", "answered"),
        [
            ("client: 192.0.2.66", "CHMRTLN", "HMTN"),
            ("helo: x", "CHMRTLN", "HMTN"),
            ("sender: a@b.example", "CHMRTLN", "MTN"),
            ("recipient: a@b.example", "CHMRTLN", "RTN"),
            ("subject: x", "CHMRLN", "N"),
            ("body: x", "CHMRBLN", "BN"),
            ("{sender: a@b.example, body: x}", "CHMRTBLN", "MTBN"),
        ],
    )
    def test_steps(self, serve: Serve, rule: str, wanted: str, answered: str) -> None:
        """A step that no rule reads is not sent, one that no rule can answer at is not answered."""
        condition = rule if rule.startswith("{") else f"{{{rule}}}"
        peer = serve(f"rules:\n  - name: one\n    if: {condition}\n    then: {{reject: '5.7.1 no'}}\n").peer()
        assert {one for one in "CHMRTLNB" if peer.wants(one)} == set(wanted)
        assert {one for one in "CHMRTLNB" if peer.wants(one) and peer.answers(one)} == set(answered)
        assert peer.steps & SKIP

    def test_macros(self, serve: Serve) -> None:
        """The queue id is asked for at every step that can know it, login and TLS at MAIL."""
        assert serve(RULES).peer().macros == {
            0: "i v",
            1: "{tls_version}",
            2: "{auth_authen} {tls_version}",
            3: "i",
            4: "i",
            5: "i",
            6: "i",
        }

    def test_old_server(self, serve: Serve) -> None:
        """A mail server that sends all, waits for every answer and takes no macro list gets the same verdicts."""
        service = serve(RULES)
        for name, kwargs in (("no offers", subject("offer")), ("bob", {"recipients": [BOB]})):
            peer = service.peer(steps=OLD_STEPS & 0, actions=0x3F, version=2)
            assert peer.macros == {}
            assert peer.connect().code == "c"
            assert peer.helo().code == "c"
            outcome = peer.message(**kwargs)
            assert outcome.code == "y", name
            peer.quit()


def connected(service: Any, **options: Any) -> Peer:
    """Return a connection that has said HELO."""
    peer: Peer = service.peer()
    peer.connect(**options)
    peer.helo()
    return peer


def test_several_messages(serve: Serve) -> None:
    """Nothing of one message is left for the next on the connection: refused, aborted, edited or cut off by MAIL."""
    service = serve(RULES)
    peer = connected(service)
    assert peer.message(**subject("offer")).text == "550 5.7.3 No offers"
    assert peer.message(recipients=[CAROL, ALICE], **subject("invoice")).edits
    peer.mail()
    peer.rcpt(CAROL)
    peer.rcpt(ALICE)
    peer.abort()
    plain = peer.message()
    assert (plain.code, plain.edits) == ("a", [])
    peer.mail(b"<enemy@example.net>")
    assert peer.message().code == "a"
    peer.quit()
    service.wait(lambda: len(service.events("message")) == 4, "four messages")
    assert [one["verdict"] for one in service.events("message")] == ["reject", "none", "none", "none"]


def test_a_login_is_of_its_message(serve: Serve) -> None:
    """The login and the queue id of one message are not the next one's, which comes without macros of its own."""
    service = serve("rules:\n  - name: ours\n    if: {authenticated: true}\n    then: {reject: '5.7.1 no'}\n")
    peer = connected(service)
    assert peer.mail(login="anna").text == "550 5.7.1 no"
    peer.queue_id = ""
    assert peer.message().code == "a"
    peer.quit()
    service.wait(lambda: len(service.events("message")) == 2, "two messages")
    assert [(one.get("login"), one["queue_id"]) for one in service.events("message")] == [
        ("anna", "NOQUEUE"),
        (None, "NOQUEUE"),
    ]


@pytest.mark.parametrize("client", ["127.0.0.1", "192.0.2.9"], ids=["sendmail(1)", "requeued"])
def test_not_over_smtp(serve: Serve, client: str) -> None:
    """Mail that came without SMTP has no recipient refused at RCPT; the whole message is, never one copy in silence."""
    service = serve(RULES)
    peer = service.peer()
    peer.connect(name="localhost", ip=client, port=0 if client == "127.0.0.1" else 2525, queue_id="4cXyZ01")
    outcome = peer.message(recipients=[ALICE, BOB])
    assert [one.code for one in outcome.recipients.values()] == ["c", "c"]
    assert (outcome.code, outcome.text) == ("y", "550 5.7.2 100%% no")
    assert service.message_event()["client"] == ("local" if client == "127.0.0.1" else client)


@pytest.mark.parametrize(
    ("version", "code"),
    [
        pytest.param("8.17.1.9", "y", id="Sendmail, who always knows a queue id"),
        pytest.param("Postfix 3.7.11", "c", id="cleanup(8)"),
        pytest.param("8tung 1.0", "c", id="cleanup(8) of a Postfix with another name"),
        pytest.param("", "c", id="of no version"),
    ],
)
def test_queue_id_at_connect(serve: Serve, version: str, code: str) -> None:
    """A queue id before there is a message means that no recipient can be refused, but not from Sendmail."""
    peer = serve(RULES).peer()
    peer.step("C", b"mail.example.net\x004" + struct.pack("!H", 4025) + b"192.0.2.1\0", {"i": "4cX", "v": version})
    peer.helo()
    peer.mail()
    assert peer.rcpt(BOB).code == code


class TestEightBit:
    """What is no UTF-8 reaches the rules all the same."""

    def test_helo(self, serve: Serve) -> None:
        """A HELO that is no UTF-8 is matched, and answered."""
        peer = serve(RULES).peer()
        peer.connect()
        assert peer.helo(b"\xff\xfebad").text == "451 4.7.1 Say another name"

    def test_helo_of_no_interest(self, serve: Serve) -> None:
        """A HELO that is no UTF-8 and that no rule is against changes nothing."""
        service = serve(RULES)
        peer = service.peer()
        peer.connect()
        peer.helo(b"\xff\xfe")
        assert peer.message().code == "a"
        assert service.message_event()["helo"] == "\xff\xfe"
        assert not service.events("fault")

    def test_helo_after_a_message(self, serve: Serve) -> None:
        """The same between two messages."""
        peer = connected(serve(RULES))
        assert peer.message().code == "a"
        assert peer.helo(b"bad\xff").text == "451 4.7.1 Say another name"
        assert peer.helo(b"good").code == "c"
        assert peer.message().code == "a"

    def test_addresses_and_header(self, serve: Serve) -> None:
        """Addresses and header values that are no UTF-8 are taken; a removed one is not named wrongly."""
        peer = connected(serve(RULES))
        outcome = peer.message(
            sender=b"<\xff@example.net>",
            recipients=[b"<\xfe\xff@example.org>", "<jos\u00e9@example.org>".encode()],
            fields=[(b"Subject", b"\xff\xfe offer")],
        )
        assert outcome.text == "550 5.7.3 No offers"

    def test_login(self, serve: Serve) -> None:
        """So is a macro."""
        service = serve(RULES)
        peer = connected(service)
        peer.step("M", b"<a@example.net>\0", {"{auth_authen}": "\udcffx"})
        peer.rcpt()
        peer.data()
        peer.end_of_header()
        peer.end()
        assert service.message_event()["login"] == "\xffx"

    def test_header_name(self, serve: Serve) -> None:
        """A field whose name is no ASCII is one more field, and what rules look at is matched."""
        service = serve(RULES)
        outcome = connected(service).message(fields=[(b"Subj\xff", b"x"), (b"Subject", b"offer")])
        assert outcome.text == "550 5.7.3 No offers"
        assert not service.events("fault")


@pytest.mark.parametrize(
    ("on_error", "code", "at"), [("defer", "y", "eoh"), ("accept", "a", "eoh")], ids=["defer", "accept"]
)
@pytest.mark.parametrize("count", [3, 4], ids=["at the limit", "beyond"])
def test_limit(serve: Serve, on_error: str, code: str, at: str, count: int) -> None:
    """A message beyond a limit gets what on_error says, with the limit in the log; one at the limit is decided."""
    service = serve(RULES, milter={"on_error": on_error}, limits={"header_fields": 3})
    outcome = connected(service).message(fields=[(b"X", b"y")] * count)
    event = service.message_event()
    if count == 3:
        assert (outcome.at, outcome.code, event.get("fault")) == ("eom", "a", None)
    else:
        assert (outcome.at, outcome.code) == (at, code)
        assert (event["fault"], event["verdict"]) == ("eoh: more than 3 header fields", on_error)


@pytest.mark.parametrize(
    ("name", "on_error", "want"),
    [
        pytest.param("step_time", "defer", ("mail", "y"), id="a step, deferred"),
        pytest.param("step_time", "accept", ("eoh", "a"), id="a step, accepted"),
        pytest.param("message_time", "defer", ("eom", "y"), id="the end, deferred"),
        pytest.param("message_time", "accept", ("eom", "a"), id="the end, accepted"),
    ],
)
def test_late(serve: Serve, name: str, on_error: str, want: tuple[str, str]) -> None:
    """A step that took too long gets what on_error says, and the log says which; it is one event."""
    service = serve(RULES, milter={name: 1e-9, "on_error": on_error})
    peer = service.peer()
    peer.connect()
    outcome = peer.message(fields=[(b"Subject", b"invoice")])
    assert ((outcome.at, outcome.code), outcome.edits) == (want, [])
    event = service.message_event()
    assert re.search(r"took \d+\.\d s, more than 1e-09 s", event["fault"])
    assert event["verdict"] == on_error


def test_large_body(serve: Serve) -> None:
    """A body beyond the limit is not kept and not sent on; the answer at its end is on_error's."""
    service = serve(RULES, limits={"message_bytes": 100_000})
    outcome = connected(service).message(body=b"x" * 300_000)
    assert (outcome.at, outcome.text[:9]) == ("eom", "451 4.3.0")
    assert service.message_event()["fault"] == "eom: a message of more than 100000 bytes"


@pytest.mark.parametrize(("on_error", "code"), [("defer", "y"), ("accept", "a")])
def test_what_cannot_be_carried_out(serve: Serve, on_error: str, code: str) -> None:
    """A decision that cannot be put into calls is a fault: its queue id and its place in the code are in the log, no
    call is made, and the client hears on_error's answer in our words.
    """
    rules = "rules:\n  - name: odd\n    if: {recipient: {domain: odd.example}}\n    then: discard\n"
    service = serve(rules, milter={"on_error": on_error})
    outcome = connected(service).message(recipients=[ALICE, b'<"car ol"@odd.example>'])
    assert (outcome.at, outcome.code, outcome.edits) == ("eom", code, [])
    assert on_error == "accept" or outcome.text.startswith("451 4.3.0 The mail filter could not decide")
    event = service.message_event()
    assert event["fault"].startswith("eom: ValueError: an address")
    (fault,) = service.events("fault")
    assert fault["queue_id"] == event["queue_id"] == "4cXyZ01"
    assert "apply.py:" in str(fault)
