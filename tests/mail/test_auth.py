"""What the site's own servers found out is read; what anybody else claims is not."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterapp.mail.auth import Result, auth, foreign_or_forged, read
from milterapp.mail.edits import RemoveHeader, apply
from milterapp.mail.message import Mail
from tests.mail.read import mail, raw

OWN = "mx.example.org"


def said(*values: str) -> Mail:
    """Return a message with these Authentication-Results."""
    return Mail("".join(f"Authentication-Results: {value}\n" for value in values).encode() + b"\nx\n")


def test_the_results_of_one_server() -> None:
    """Several fields, several signatures, comments, quotes, case and version: all of the own server's, and no other."""
    found = read(mail("authenticated-by-three"), [OWN])
    assert found.faults == ("Authentication-Results that cannot be read",)
    assert {method: [one.result for one in results] for method, results in found.results.items()} == {
        "dkim": ["pass", "fail"],
        "spf": ["softfail"],
        "dmarc": ["pass"],
    }
    assert found.results["dkim"][1] == Result("dkim", "fail", (("header.d", "c.example"),), "bad; signature", OWN)
    assert found.results["dkim"][0].property("Header.D") == "b.example"
    assert found.results["spf"][0].property("header.d") == ""


@pytest.mark.parametrize(
    ("value", "results"),
    [
        pytest.param("mx.example.org; spf=pass", {"spf": "pass"}, id="plain"),
        pytest.param("mx.example.org;spf=pass;", {"spf": "pass"}, id="semicolon-at-the-end"),
        pytest.param("(a (b) c) MX.EXAMPLE.ORG(d); spf = PASS", {"spf": "pass"}, id="comments-and-case"),
        pytest.param("mx.example.org 1; x-new/1=fail", {"x-new": "fail"}, id="unknown-method"),
        pytest.param("mx.example.org; none", {}, id="none"),
        pytest.param("mx.example.org", {}, id="nothing"),
        pytest.param("mx.example.org 2; spf=pass", {}, id="another-version"),
        pytest.param("mx.example.org.evil.example; spf=pass", {}, id="begins-like-it"),
        pytest.param("evil.example (; mx.example.org); spf=pass", {}, id="in-a-comment"),
        pytest.param('"mx.example.org; spf=pass', {}, id="quote-not-closed"),
        pytest.param("mx.example.org (; spf=pass", {}, id="comment-not-closed"),
        pytest.param("mx.example.org) ; spf=pass", {}, id="comment-not-opened"),
        pytest.param("evil.example; spf=pass mx.example.org; dkim=pass", {}, id="in-the-middle"),
        pytest.param("", {}, id="empty"),
    ],
)
def test_whose_word_counts(value: str, results: dict[str, str]) -> None:
    """A field counts where its authserv-id is the one configured, and it can be read."""
    assert {method: found[0].result for method, found in auth(said(value), [OWN]).items()} == results


def test_what_a_border_removes() -> None:
    """Fields that claim the site's id, and unreadable ones that name it, go; others stay to the byte."""
    data = raw("authenticated-by-three")
    forged = foreign_or_forged(Mail(data), "MX.example.ORG")
    assert forged == (1, 2, 4, 5)
    after = Mail(apply(data, [RemoveHeader("authentication-results", forged)]))
    assert after.raw_values("authentication-results") == (
        "mx.elsewhere.example; spf=pass smtp.mailfrom=a@b.example; dmarc=fail",
    )
    assert auth(after, [OWN]) == {}
    assert foreign_or_forged(after, OWN) == ()


@pytest.mark.parametrize(
    "values",
    [
        pytest.param([OWN + "; spf=pass" + " smtp.a=b" * 880] * 60, id="properties"),
        pytest.param([OWN + "; spf=pass" + " a.b=c" * 1300] * 60, id="properties-that-are-none"),
        pytest.param([OWN + '; spf=pass smtp.a="' + '\\"' * 3000 + '"'] * 60, id="quotes"),
        pytest.param(["(" * 100_000 + OWN], id="comments"),
        pytest.param([OWN + "; spf=pass"] * 900, id="many"),
        pytest.param([OWN + ";" * 8000], id="semicolons"),
        pytest.param([OWN + "; a=" + "." * 8000], id="dots"),
        pytest.param([OWN + "; spf=pass reason=" + "a." * 4000], id="reason"),
    ],
)
def test_reading_is_bounded(values: list[str]) -> None:
    """Fields made to cost are read within a bound of work."""
    one = said(*values)
    began = time.process_time()
    read(one, [OWN])
    foreign_or_forged(one, OWN)
    assert time.process_time() - began < 2


_PIECES = st.sampled_from(
    ["; ", "spf", "=", "pass", " ", "/1", "reason=", '"', "(", ")", "\\", "smtp.a", "@", ".", "none"]
)


@given(st.lists(_PIECES | st.text(max_size=3), max_size=25))
def test_no_value_raises(pieces: list[str]) -> None:
    """Whatever a field of the own id holds, reading it raises nothing."""
    one = said(OWN + "; " + "".join(pieces).replace("\n", " ").replace("\r", " "))
    for results in auth(one, [OWN]).values():
        assert all(found.method == found.method.lower() and found.authserv_id == OWN for found in results)
    assert foreign_or_forged(one, OWN) == (1,)
