"""The envelope's addresses are taken apart as Postfix takes them apart."""

from __future__ import annotations

import pytest

from milterapp.mail.envelope import split_address, split_detail


@pytest.mark.parametrize(
    ("local", "delimiters", "want"),
    [
        pytest.param("bob+lists", "+", ("bob", "lists"), id="extension"),
        pytest.param("bob+a+b", "+", ("bob", "a+b"), id="the first delimiter splits"),
        pytest.param("bob-a+b", "+-", ("bob", "a+b"), id="any of several delimiters"),
        pytest.param("bob", "+", ("bob", ""), id="no delimiter in it"),
        pytest.param("bob+", "+", ("bob", ""), id="empty extension"),
        pytest.param("bob+x", "", ("bob+x", ""), id="no delimiter at the site"),
        pytest.param("+a+b", "+", ("+a+b", ""), id="begins with a delimiter"),
        pytest.param("owner-list", "-", ("owner-list", ""), id="owner- with a hyphen as delimiter"),
        pytest.param("owner-list+x", "+", ("owner-list", "x"), id="owner- with another delimiter"),
        pytest.param("list-request", "-", ("list-request", ""), id="-request with a hyphen as delimiter"),
        pytest.param("Double-Bounce", "-", ("Double-Bounce", ""), id="an address of Postfix's own"),
    ],
)
def test_splits_the_extension_as_postfix_does(local: str, delimiters: str, want: tuple[str, str]) -> None:
    """A local part is split where, and only where, Postfix's recipient_delimiter splits it."""
    assert split_detail(local, delimiters) == want


@pytest.mark.parametrize(
    ("address", "want"),
    [("a@b@example.org", ("a@b", "example.org")), ("postmaster", ("postmaster", "")), ("", ("", ""))],
)
def test_splits_an_address_at_its_last_at_sign(address: str, want: tuple[str, str]) -> None:
    """The last `@` ends the local part; without one there is no domain."""
    assert split_address(address) == want
