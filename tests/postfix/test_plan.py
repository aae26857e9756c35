"""What attaching changes and undoing changes back, as values."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterapp.postfix.plan import Before, attach, detach, elements, notes, without_ours
from milterapp.postfix.postconf import Service
from milterapp.postfix.wiring import MILTER, SERVICES, Site, wanted

KNOWN = frozenset({"content_filter", "cleanup_service_name", "smtpd_milters", "hopcount_limit", "mailbox_transport",
                   "mailbox_transport_maps", "alias_maps", "pipe_delivery_status_filter"})  # fmt: skip
CLIENT = ("/usr/bin/python3", "-I", "-S", "/opt/x/pipe.py")
SITE = Site("milterapp-pipe", CLIENT, 20, virtual=(*CLIENT, "--virtual=/x"))
MILTERS = st.lists(
    st.sampled_from(["inet:localhost:8891", "unix:opendkim/sock", "{ inet:[::1]:11332, default_action = accept }"]),
    max_size=3,
).map(", ".join)
MAIN = st.fixed_dictionaries(
    {},
    optional={
        "smtpd_milters": MILTERS,
        "non_smtpd_milters": MILTERS | st.just("$smtpd_milters") | st.just("${smtpd_milters}"),
        "mailbox_transport": st.sampled_from(["", "lmtp:unix:private/dovecot-lmtp"]),
        "mailbox_transport_maps": st.sampled_from(["", "hash:/etc/postfix/transports"]),
        "virtual_transport": st.sampled_from(["virtual", "lmtp:unix:private/dovecot-lmtp"]),
        "mailbox_command": st.just("/usr/bin/procmail"),
        "hopcount_limit": st.sampled_from(["50", "75", "$other"]),
    },
)


def applied(main: dict[str, str]) -> tuple[dict[str, str], dict[str, Service], dict[str, Before]]:
    """Return main.cf, master.cf and the record of an attachment."""
    changes, ours = attach(main, {}, main, wanted(SITE, main, {}, KNOWN, "/x"))
    after = {**main, **{name: value for name, value in changes.main.items() if value is not None}}
    return after, {one.key: one for one in changes.services}, ours


@given(MAIN)
def test_undo_restores_every_setting(main: dict[str, str]) -> None:
    """Whatever main.cf said before, taking out what was put in gives exactly that."""
    after, services, ours = applied(main)
    changes = detach(after, services, ours, keep_keepers=False)
    restored = {**after, **changes.main}
    assert {name: value for name, value in restored.items() if value is not None} == main
    assert set(changes.gone) == set(services)


@given(MAIN)
def test_applying_twice_changes_nothing_more(main: dict[str, str]) -> None:
    """The second application finds nothing to do."""
    after, services, ours = applied(main)
    base = without_ours(after, ours)
    changes, again = attach(after, services, base, wanted(SITE, base, services, KNOWN, "/x"))
    assert (bool(changes), again) == (False, ours)


@given(MAIN)
def test_every_message_passes_our_milter_once(main: dict[str, str]) -> None:
    """Our milter stands once in each list, before the others, also where one list names the other."""
    after, _, _ = applied(main)
    expanded = dict(after)
    for form in ("$smtpd_milters", "${smtpd_milters}"):
        expanded["non_smtpd_milters"] = expanded["non_smtpd_milters"].replace(form, after["smtpd_milters"])
    for name in ("smtpd_milters", "non_smtpd_milters"):
        assert elements(expanded[name]).count(MILTER) == 1
        assert elements(expanded[name])[0] == MILTER


@pytest.mark.parametrize(
    ("changed", "restored"),
    [
        (
            {"smtpd_milters": f"{MILTER}, inet:localhost:1, inet:new:2"},
            {"smtpd_milters": "inet:localhost:1, inet:new:2"},
        ),
        ({"smtpd_milters": f"inet:new:2,\n  {MILTER}"}, {"smtpd_milters": "inet:new:2"}),
        ({"smtpd_milters": MILTER}, {"smtpd_milters": None}),
        ({"mailbox_transport": "lmtp:elsewhere"}, {"mailbox_transport": "lmtp:elsewhere"}),
        ({"milterapp_time_limit": "2000s"}, {"milterapp_time_limit": "2000s"}),
    ],
    ids=["a milter added", "order changed", "the others taken out", "another transport", "a limit raised"],
)
def test_what_the_administrator_changed_since_stays(changed: dict[str, str], restored: dict[str, str | None]) -> None:
    """Undo takes our element out of a changed list and leaves every other changed setting alone."""
    after, _, ours = applied({"smtpd_milters": "inet:localhost:1"})
    base = without_ours({**after, **changed}, ours)
    for name, value in restored.items():
        assert base.get(name) == value


def test_keepers_stay_while_they_are_needed() -> None:
    """Taking out with mail still queued leaves milterapp-keep and its cleanup, and nothing else."""
    after, services, ours = applied({})
    gone = detach(after, services, ours, keep_keepers=True).gone
    assert {f"{name}/unix" for name in SERVICES} - set(gone) == {"milterapp-keep/unix", "milterapp-cleanup/unix"}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", []),
        ("a", ["a"]),
        ("a, b\tc", ["a", "b", "c"]),
        ("{ a, b = c }, d", ["{ a, b = c }", "d"]),
        ("{ a { b } c } d", ["{ a { b } c }", "d"]),
    ],
    ids=["empty", "one", "commas and blanks", "braces", "braces in braces"],
)
def test_elements(value: str, expected: list[str]) -> None:
    """A list of main.cf parts at commas and blanks outside braces."""
    assert elements(value) == expected


def test_notes_name_what_goes_round_milterapp() -> None:
    """A service with milters of its own, another local_transport and virtual mailboxes are each said."""
    submission = Service("submission", "inet", "n", "-", "y", "-", "-", "smtpd -o smtpd_milters=inet:x:1")
    found = notes({"local_transport": "lmtp:x", "virtual_mailbox_domains": "a.example"}, {submission.key: submission})
    assert [one.partition(":")[0] for one in found] == ["master.cf", "main.cf", "main.cf"]
    assert notes({"local_transport": "local:$myhostname"}, {}) == []


def test_previous_transports_are_asked_by_keep() -> None:
    """What mailbox_transport and mailbox_transport_maps were is what milterapp-keep has."""
    main = {"mailbox_transport": "lmtp:unix:private/x", "mailbox_transport_maps": "hash:/a, hash:/b"}
    goal = wanted(SITE, main, {}, KNOWN, "/x")
    keep = next(service for service, _ in goal.services if service.name == "milterapp-keep")
    assert "-o mailbox_transport=lmtp:unix:private/x" in keep.command
    assert "-o { mailbox_transport_maps=hash:/a, hash:/b }" in keep.command
    assert goal.settings()["mailbox_transport_maps"] == ""


def test_the_client_gets_each_argument_apart() -> None:
    """The pipe service names five arguments, each on its own, after the command; braces hold blanks together."""
    site = Site("p", ("/usr/bin/python3", "/opt/with blank/pipe.py", "$x"), 3)
    pipe = next(one for one, _ in wanted(site, {}, {}, KNOWN, "/x").services if one.name == "milterapp")
    assert pipe.command.endswith(
        "argv=/usr/bin/python3 { /opt/with blank/pipe.py } $$x"
        " ${sender} ${recipient} ${original_recipient} ${queue_id} ${client_address}"
    )
    assert pipe.limit == "3"


@given(MAIN, st.booleans())
def test_another_door_takes_the_place_of_the_first(main: dict[str, str], lmtp_first: bool) -> None:
    """Attached by one door and then by the other, Postfix has what the other alone would have given it."""
    doors = [SITE, dataclasses.replace(SITE, lmtp="milterapp-lmtp/socket", lmtp_virtual="milterapp-lmtp/virtual")]
    first, second = reversed(doors) if lmtp_first else doors

    def attached(site: Site, main: dict[str, str], ours: dict[str, Before]) -> tuple[dict[str, str], dict[str, Before]]:
        base = without_ours(main, ours)
        changes, record = attach(main, {}, base, wanted(site, base, {}, KNOWN, "/x"))
        return {name: value for name, value in {**main, **changes.main}.items() if value is not None}, record

    after, ours = attached(first, main, {})
    assert attached(second, after, ours) == attached(second, main, {})


def test_the_lmtp_door() -> None:
    """Its service is lmtp(8), with the queue id passed on; mailbox_transport names its socket."""
    goal = wanted(dataclasses.replace(SITE, lmtp="m/socket"), {}, {}, frozenset({"lmtp_send_xforward_command"}), "/x")
    service = next(one for one, _ in goal.services if one.name == "milterapp")
    assert service.command == "lmtp -o lmtp_send_xforward_command=yes"
    assert goal.settings()["mailbox_transport"] == "milterapp:unix:m/socket"
    assert "milterapp_time_limit" not in goal.settings()


def test_the_lmtp_door_of_virtual_domains() -> None:
    """Its service is the same with another socket, and hand-back goes on to what was there before, as by pipe(8)."""
    known = frozenset({"lmtp_send_xforward_command", "content_filter"})
    before = {"virtual_transport": "lmtp:unix:private/x"}
    site = dataclasses.replace(SITE, lmtp="m/socket", lmtp_virtual="m/virtual")
    goals = [wanted(one, before, {}, known, "/x") for one in (site, SITE)]
    by_lmtp, by_pipe = ({service.name: service.command for service, _ in goal.services} for goal in goals)
    assert by_lmtp["milterapp-virtual"] == "lmtp -o lmtp_send_xforward_command=yes"
    assert by_lmtp["milterapp-hand-back-virtual"] == by_pipe["milterapp-hand-back-virtual"]
    assert "content_filter=lmtp:unix:private/x" in by_pipe["milterapp-hand-back-virtual"]
    assert [one.settings()["virtual_transport"] for one in goals] == [
        "milterapp-virtual:unix:m/virtual", "milterapp-virtual:",
    ]  # fmt: skip
    extra = [{name for name in goal.settings() if name.startswith("milterapp-virtual_")} for goal in goals]
    assert extra[1] - extra[0] == {"milterapp-virtual_time_limit"}
    assert extra[0] == {f"milterapp-virtual_destination_{what}_limit" for what in ("recipient", "concurrency")}


def test_virtual_domains_attached_by_either_door_are_no_note() -> None:
    """What is ours is not said to go round us; without people there its service is not there."""
    for transport in ("milterapp-virtual:", "milterapp-virtual:unix:m/virtual"):
        assert notes({"virtual_mailbox_domains": "a.example", "virtual_transport": transport}, {}) == []
    goal = wanted(dataclasses.replace(SITE, virtual=(), lmtp="m/socket"), {}, {}, KNOWN, "/x")
    assert "milterapp-virtual" not in {service.name for service, _ in goal.services}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param({}, "TABLE", id="none before"),
        pytest.param({"milter_header_checks": "pcre:/x"}, "TABLE, pcre:/x", id="beside another"),
    ],
)
def test_transports(before: dict[str, str], after: str) -> None:
    """The transports that rules may name, to the letter, and no others; and no table where there are none."""
    table = "regexp:{ { /^X-Milterapp-Transport: smtp:\\[a\\.example\\]:25$$/ FILTER smtp:[a.example]:25 } }"
    site = dataclasses.replace(SITE, transports=("smtp:[a.example]:25",))
    got = wanted(site, before, {}, KNOWN, "/x").settings()
    assert got["milter_header_checks"] == after.replace("TABLE", table)
    assert "milter_header_checks" not in wanted(SITE, before, {}, KNOWN, "/x").settings()
