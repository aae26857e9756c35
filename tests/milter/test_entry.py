"""Tests of milterapp.milter.entry: what a message may not bring along."""

from __future__ import annotations

import pytest

from milterapp.mail.message import Mail
from milterapp.milter.entry import BEFORE, Trust, forbidden

IDS = ("mx.example.org",)


@pytest.mark.parametrize(
    ("header", "want"),
    [
        pytest.param(b"Subject: x\nX-Milter: y\nX-Milterapp: z\n", [], id="nothing of ours"),
        pytest.param(b"X-Milterapp-Tags: a\nSubject: x\nx-MILTERAPP-tags: b\n", [0, 2], id="ours, in any case"),
        pytest.param(b"Authentication-Results: mx.example.org; spf=pass\n", [0], id="in our name"),
        pytest.param(b"authentication-results: (a) MX.Example.org; spf=pass\n", [0], id="after a comment"),
        pytest.param(b"Authentication-Results: (mx.example.org; spf=pass\n", [0], id="not to be read, but names us"),
        pytest.param(b"Authentication-Results: mx.elsewhere.example; spf=pass\n", [], id="in another's name"),
        pytest.param(
            b"Authentication-Results: a.example; spf=pass\nA: b\nAuthentication-Results: mx.example.org; spf=pass\n",
            [2],
            id="one of two",
        ),
    ],
)
def test_forbidden(header: bytes, want: list[int]) -> None:
    """Fields of ours and forged findings are named, by place and by occurrence; what others may write is not."""
    mail = Mail(header + b"\nbody\n")
    entry = forbidden(mail, IDS)
    assert sorted(entry.fields) == want
    for place, (name, number) in zip(want, entry.occurrences, strict=True):
        assert mail.fields(name)[number - 1] is mail.header[place]


@pytest.mark.parametrize(
    ("results_from", "client", "suspects"),
    [
        pytest.param((), "192.0.2.1", IDS, id="nobody is believed"),
        pytest.param((), "", IDS, id="not even this host"),
        pytest.param((BEFORE,), "192.0.2.1", (), id="milters before us"),
        pytest.param(("192.0.2.0/24",), "192.0.2.1", (), id="a relay"),
        pytest.param(("192.0.2.0/24",), "198.51.100.1", IDS, id="another client"),
        pytest.param(("192.0.2.0/24",), "", IDS, id="no client"),
        pytest.param(("2001:db8::/32",), "IPv6:2001:db8::1", (), id="IPv6, as Sendmail writes it"),
        pytest.param(("192.0.2.1",), "::ffff:192.0.2.1", (), id="IPv4 in IPv6"),
    ],
)
def test_trust(results_from: tuple[str, ...], client: str, suspects: tuple[str, ...]) -> None:
    """Only the clients named may speak in the site's name."""
    assert Trust(IDS, results_from).suspects(client) == suspects


def test_trust_that_makes_no_sense() -> None:
    """What is no network is an error."""
    with pytest.raises(ValueError, match="does not appear to be"):
        Trust(IDS, ("relay.example.org",))
