"""A quota that is used up: mail waits in Postfix's queue, nobody is told otherwise, and once there is room it arrives.

Of Dovecot's LMTP server with its quota plugin, under `keep: lmtp:`, and of the file system, under `keep: maildir`.
"""

from __future__ import annotations

import os
import pwd
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import dovecot
from tests.postfix import limited
from tests.postfix.harness import Site, message
from tests.postfix.mailboxes import header

pytestmark = [pytest.mark.root, pytest.mark.postfix]

ALICE, BOB = "alice@example.org", "bob@example.org"
BODY = ("x" * 70 + "\n") * 400  # 28 kB
COPIED = "rules:\n  - name: on\n    then:\n      forward: {to: alice@home.example, copy: true}\n"
QUOTA = """\
mail_plugins = quota
plugin {{
  quota = count:User quota
  quota_vsizes = yes
  quota_grace = 0
}}
quota_full_tempfail = {tempfail}
"""


def subjects(messages: list[bytes]) -> list[str]:
    """Return the subjects of some messages, sorted."""
    return sorted(header(one, "Subject")[0] for one in messages)


@pytest.fixture
def keeper(host: Site, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A Dovecot that keeps alice's mail up to 40 kB, and the host with it; gives its folder.

    The parameter says whether it answers 452 to what is more, else 552.
    """
    users = []
    for name, more in (("alice", "userdb_quota_rule=*:storage=40K"), ("bob", "")):
        account = pwd.getpwnam(name)
        users.append(f"{name}::{account.pw_uid}:{account.pw_gid}::{account.pw_dir}::{more}")
    with dovecot.serving(users, QUOTA.format(tempfail="yes" if request.param else "no")) as folder:
        keeping = f"delivery:\n  keep: lmtp:unix:{folder}/lmtp\n"
        with host.configured(keeping, "submit", "monitor"):
            yield folder


@pytest.mark.skipif(not dovecot.is_there(), reason="no Dovecot 2.3")
@pytest.mark.parametrize(
    ("keeper", "said"),
    [pytest.param(True, "452 4.2.2", id="temporary"), pytest.param(False, "552 5.2.2", id="permanent")],
    indirect=["keeper"],
)
def test_what_dovecot_has_no_room_for_waits(site: Site, keeper: Path, said: str) -> None:
    """Over quota, by whichever answer, mail waits with Dovecot's words; with room again it arrives, all of it once."""
    site.rules("alice", COPIED)
    site.send(message("first", BODY))
    site.settle()
    assert subjects(site.inbox("alice")) == ["first"]
    answer = site.send(message("second", BODY))
    site.send(message("to another", BODY), [BOB])
    fate = site.deferred(answer.queue_id, times=3)
    assert (fate.dsn, f"keep: the end of the data: {said}" in fate.text) == ("4.2.2", True)
    site.wait(lambda: bool(site.inbox("bob")), "other people's mail", 30)
    # What has arrived is in the queue for a moment more, and what moves within it may be seen in no part of it.
    site.wait(lambda: [one["queue_id"] for one in site.queue()] == [answer.queue_id], "all but that one to be gone", 30)
    dovecot.doveadm(keeper, "expunge", "-u", "alice", "mailbox", "INBOX", "all")
    site.settle()
    (kept,) = site.inbox("alice")
    assert header(kept, "Subject") == ["second"]
    assert kept.endswith(BODY.encode())
    assert subjects(site.elsewhere()) == ["first", "second"]  # the copies, each once, and no notice


HOME = Path("/home/alice")
ROOM = 4 << 20
FILED = "rules:\n  - name: all\n    then:\n      file: {folder: Filed, copy: true}\n"


@pytest.fixture
def home(site: Site) -> Iterator[Site]:
    """The host, where alice's home has a quota."""
    with limited.disk("alice", ROOM) as found:
        if found is None:
            pytest.skip("no quota to be had: no tmpfs with quotas, and no loop device with mkfs.btrfs")
        shutil.chown(HOME, "alice", "alice")
        yield site


@pytest.fixture
def small(home: Site) -> Iterator[Site]:
    """That host with `keep: maildir`."""
    with home.configured("delivery:\n  keep: maildir\n", "monitor"):
        yield home


@pytest.mark.parametrize("left", [0, 256 << 10], ids=["nothing is left", "too little is left"])
@pytest.mark.parametrize("rules", ["", FILED], ids=["kept", "filed and kept"])
def test_a_disk_quota_that_is_used_up_makes_mail_wait(small: Site, rules: str, left: int) -> None:
    """Its mail waits and is in no folder in part, other people's arrives; with room again each copy is there, once."""
    want = {name: ["first", "second"] for name in (["", "Filed"] if rules else [""])}

    def arrived() -> dict[str, list[str]]:
        return {name: subjects(found) for name, found in small.folders("alice").items()}

    if rules:
        small.rules("alice", rules)
    small.send(message("first"))
    small.settle()
    assert arrived() == {name: ["first"] for name in want}
    ballast, spare = HOME / "ballast", HOME / "spare"
    spare.write_bytes(os.urandom(left))
    limited.use_up(ballast, "alice")
    spare.unlink()
    answer = small.send(message("second", BODY * 20))
    small.send(message("to another"), [BOB])
    why = small.deferred(answer.queue_id, times=3).text
    assert "Disk quota exceeded" in why or "journal.sqlite: disk I/O error" in why  # SQLite's word for it
    small.wait(lambda: bool(small.inbox("bob")), "other people's mail", 30)
    assert arrived() == {name: ["first"] for name in want}
    ballast.unlink()
    small.settle()
    assert arrived() == want
    whole = [one.endswith(BODY.encode() * 20) for found in small.folders("alice").values() for one in found]
    assert sorted(whole) == sorted([False, True] * len(want))  # the one called `first` is short
    assert list((HOME / "Maildir" / "tmp").iterdir()) == []
    assert small.elsewhere() == []


@pytest.fixture
def postfixs(home: Site, request: pytest.FixtureRequest) -> Iterator[Site]:
    """That host, where local(8) keeps mail in the home, and 5.2.2 is what the parameter makes of it."""
    home.postconf(home_mailbox="Maildir/", **request.param)
    home.postfix("reload")
    yield home
    home.run("postconf", "-X", "home_mailbox", *request.param)
    home.postfix("reload")


WAITING = {"local_delivery_status_filter": r"regexp:{ { /^5\.2\.2 (.*)/ 4.2.2 $$1 } }"}


@pytest.mark.parametrize("postfixs", [{}], ids=["as Postfix has it"], indirect=True)
def test_what_is_handed_back_bounces_where_postfix_says_so(postfixs: Site) -> None:
    """local(8) takes a used-up quota for final, with milterapp as without: who has no rules has no other delivery."""
    limited.use_up(HOME / "ballast", "alice")
    answer = postfixs.send(message("hello", BODY))
    postfixs.settle()  # the notice can be there before pipe(8) has said that the first pass ended
    (notice,) = postfixs.elsewhere()
    assert b"Status: 5.2.2" in notice
    assert [one.status for one in postfixs.fates(answer.queue_id)] == ["sent"]  # handed back
    (HOME / "ballast").unlink()


@pytest.mark.parametrize("postfixs", [WAITING], ids=["local_delivery_status_filter"], indirect=True)
def test_what_is_handed_back_waits_where_the_site_says_so(postfixs: Site) -> None:
    """With Postfix's own filter of statuses it waits with 4.2.2, and arrives once there is room."""
    limited.use_up(HOME / "ballast", "alice")
    postfixs.send(message("hello", BODY))
    postfixs.wait(lambda: any(one.dsn == "4.2.2" for one in postfixs.fates()), "it to wait", 60)
    (HOME / "ballast").unlink()
    postfixs.settle()
    assert subjects(postfixs.inbox("alice")) == ["hello"]
    assert postfixs.elsewhere() == []
