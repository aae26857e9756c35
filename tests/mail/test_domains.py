"""Two spellings of one domain have one form in ASCII, and two domains never have."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterapp.mail.domains import ascii_domain


@pytest.mark.parametrize(
    ("domain", "wanted"),
    [
        pytest.param("MX.Example.Org.", "mx.example.org", id="case, and a dot at the end"),
        pytest.param("Müller.Example", "xn--mller-kva.example", id="umlaut"),
        pytest.param("mu\u0308ller.example", "xn--mller-kva.example", id="the other form of Unicode"),
        pytest.param("XN--Mller-kva.example", "xn--mller-kva.example", id="in ASCII before"),
        pytest.param("straße.de", "xn--strae-oqa.de", id="sharp s"),
        pytest.param("STRAßE.de", "xn--strae-oqa.de", id="sharp s beside capitals"),
        pytest.param("οδος.gr", "xn--pxavbm.gr", id="final sigma"),
        pytest.param("ΟΔΟΣ.gr", "xn--pxavbq.gr", id="capital sigma, which is the other one"),
        pytest.param("نامه\u200cای.com", "xn--mgba3gch31f060k.com", id="a joiner"),
        pytest.param("müller。example", "xn--mller-kva.example", id="another dot"),
        pytest.param("ｅxample.org", "example.org", id="a wide letter"),
    ],
)
def test_the_form_of_a_name(domain: str, wanted: str) -> None:
    """It is what IDNA 2008 registers the name as, whatever the case."""
    assert ascii_domain(domain) == wanted


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param("straße.de", "strasse.de", id="sharp s and ss"),
        pytest.param("STRAẞE.de", "strasse.de", id="capital sharp s and ss"),
        pytest.param("STRAẞE.de", "straße.de", id="capital sharp s and sharp s, of which nobody is sure"),
        pytest.param("οδος.gr", "οδοσ.gr", id="the two sigmas"),
        pytest.param("نامه\u200cای.com", "نامهای.com", id="with and without a joiner"),
        pytest.param("x⒈example", "x1.example", id="a sign with a dot in it"),
        pytest.param("ß" * 70 + ".de", "s" * 70 + ".de", id="too long for a label"),
    ],
)
def test_two_names_stay_two(one: str, other: str) -> None:
    """What anybody may register apart, or may not be sure to be one, is not one."""
    assert ascii_domain(one) != ascii_domain(other)


@given(st.text("aAß\u1e9eςΣü.\u200d\u3002\udcff-", max_size=80))
def test_any_text_has_a_form(text: str) -> None:
    """It never fails, and the form of a form is itself."""
    found = ascii_domain(text)
    assert ascii_domain(found) == found or found.endswith(".") or not found.isascii()
