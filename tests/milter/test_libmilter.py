"""Our packets beside those of libmilter: a real one, driven through pymilter, is told to make the same edits."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from milterapp.milter import protocol
from tests.milter.peer import Peer

# A milter that does at the end of a message what the field X-Do asks for, as JSON.
MILTER = """\
import json, sys
import milter
def field(ctx, name, value):
    if name == "X-Do":
        ctx.setpriv(json.loads(value))
    return milter.CONTINUE
def end(ctx):
    for method, arguments in ctx.getpriv():
        if method == "replacebody":
            arguments = [arguments[0].encode("latin-1")]
        getattr(ctx, method)(*arguments)
        if method == "setreply":
            return milter.REJECT if arguments[0][0] == "5" else milter.TEMPFAIL
    return milter.ACCEPT
flags = (milter.ADDHDRS | milter.CHGHDRS | milter.CHGBODY | milter.CHGFROM | milter.ADDRCPT | milter.DELRCPT
    | milter.QUARANTINE | milter.SETSYMLIST)
def negotiate(ctx, options):
    options[:] = [flags, options[1] & milter.P_HDR_LEADSPC, 0, 0]
    return milter.CONTINUE
milter.set_flags(flags)
milter.set_header_callback(field)
milter.set_eom_callback(end)
milter.register("ask", negotiate=negotiate)
milter.setconn("unix:" + sys.argv[1])
milter.main()
"""

NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9-]{0,20}", fullmatch=True)
VALUES = st.from_regex(r" [!-~]([ -~]{0,40}(\n[ \t][!-~]+)?)", fullmatch=True)
PLACES = st.integers(0, 50)
ADDRESSES = st.from_regex(r"<[a-z0-9.+-]{1,20}@[a-z0-9-]{1,20}\.example>", fullmatch=True)
WORDS = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=40).filter(str.strip)
EDITS = st.one_of(
    st.tuples(st.just("addheader"), st.tuples(NAMES, VALUES)),
    st.tuples(st.just("addheader"), st.tuples(NAMES, VALUES, PLACES)),
    st.tuples(st.just("chgheader"), st.tuples(NAMES, PLACES, VALUES)),
    st.tuples(st.just("chgheader"), st.tuples(NAMES, PLACES, st.none())),
    st.tuples(st.just("replacebody"), st.tuples(st.binary(min_size=1, max_size=200))),
    st.tuples(st.just("chgfrom"), st.tuples(ADDRESSES)),
    st.tuples(st.just("addrcpt"), st.tuples(ADDRESSES)),
    st.tuples(st.just("delrcpt"), st.tuples(ADDRESSES)),
    st.tuples(st.just("quarantine"), st.tuples(WORDS)),
)


# too_slow as well: what is said here takes the place of what tests/conftest.py says.
CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


def listens(path: str) -> bool:
    """Tell whether somebody takes connections there; the file is there a moment before."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(path) == 0


@pytest.fixture(scope="module")
def libmilter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start a milter of libmilter's, and give its socket."""
    folder = tmp_path_factory.mktemp("libmilter")
    path = str(folder / "socket")
    (folder / "milter.py").write_text(MILTER)
    process = subprocess.Popen([sys.executable, "-I", str(folder / "milter.py"), path])
    try:
        end = time.monotonic() + 30
        while not listens(path):
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.01)
        yield path
    finally:
        process.kill()
        process.wait()


def told(path: str, calls: list[tuple[str, tuple[object, ...]]]) -> list[bytes]:
    """Return the packets that libmilter sends for these calls."""

    def plain(argument: object) -> Any:
        return argument.decode("latin-1") if isinstance(argument, bytes) else argument

    asked = json.dumps([[method, [plain(one) for one in arguments]] for method, arguments in calls])
    peer = Peer(path)
    with contextlib.closing(peer.sock):
        peer.connect()
        outcome = peer.message(fields=[(b"X-Do", asked.encode("ascii"))])
        found = [protocol.packet(code.encode(), data) for code, data in outcome.edits]
        if outcome.code == "y":
            found.append(protocol.packet(b"y", outcome.text.encode() + b"\0"))
        return found


@settings(deadline=None, max_examples=60, suppress_health_check=CHECKS)
@given(st.lists(EDITS, max_size=8))
def test_edits(libmilter: str, calls: list[tuple[str, tuple[object, ...]]]) -> None:
    """Each edit is the very packet that libmilter makes of it."""
    assert [protocol.edit(method, arguments) for method, arguments in calls] == told(libmilter, calls)


@settings(deadline=None, max_examples=40, suppress_health_check=CHECKS)
@given(
    code=st.sampled_from(["550", "554", "451", "421"]),
    detail=st.from_regex(r"[0-9]{1,3}\.[0-9]{1,3}", fullmatch=True),
    lines=st.lists(WORDS.map(lambda one: one.replace("%", "%%")), min_size=1, max_size=20),
)
def test_refusals(libmilter: str, code: str, detail: str, lines: list[str]) -> None:
    """So is a refusal, of one line or of several."""
    status = f"{code[0]}.{detail}"
    ours = protocol.refusal(code, status, lines)
    assert [ours] == told(libmilter, [("setreply", (code, status, *lines))])
