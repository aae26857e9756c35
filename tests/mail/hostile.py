"""Messages made to cost: each is small to write down and large or deep to read."""

from __future__ import annotations

from collections.abc import Callable

HEAD = b"From: a@example.org\nSubject: x\n"


def _nested(levels: int, same: bool) -> bytes:
    names = [b"b" if same else b"b%d" % level for level in range(levels)]
    return b"".join(b"Content-Type: multipart/mixed; boundary=%s\n\n--%s\n" % (name, name) for name in names) + b"\nx\n"


MESSAGES: dict[str, Callable[[], bytes]] = {
    "20000-parts": lambda: HEAD + b"Content-Type: multipart/mixed; boundary=b\n\n" + b"--b\n\nx\n" * 20_000,
    "2000-levels": lambda: _nested(2000, same=False),
    "2000-levels-of-one-boundary": lambda: _nested(2000, same=True),
    "2000-messages-in-messages": lambda: b"Content-Type: message/rfc822\n\n" * 2000,
    "100000-headers": lambda: b"".join(b"X-%d: y\n" % n for n in range(100_000)) + b"\nx\n",
    "from-of-20000-quotes": lambda: b"From: " + b'"' * 20_000 + b" <a@b>\n\nx\n",
    "from-of-20001-quotes": lambda: b"From: " + b'"' * 20_001 + b" <a@b>\n\nx\n",
    "from-of-escaped-quotes": lambda: b'From: "' + b'\\"' * 20_000 + b" <a@b>\n\nx\n",
    "from-of-parentheses": lambda: b"From: " + b"(" * 20_000 + b" <a@b>\n\nx\n",
    "from-of-half-closed-parentheses": lambda: b"From: " + b"(" * 20_000 + b")" * 19_999 + b" <a@b>\n\nx\n",
    "from-of-colons": lambda: b"From: " + b"a " * 20_000 + b"@" + b":" * 20_000 + b"\n\nx\n",
    "no-header-end": lambda: b"x" * 2_000_000,
    "one-field-without-end": lambda: b"Subject: x\n" + b" y\n" * 200_000,
    "nul-bytes": lambda: bytes(1_000_000),
    "bare-cr": lambda: b"Subject: x" + b"\r" * 400_000 + b"\n\nx\n",
    "words-not-closed": lambda: b"Subject: " + b"=?utf-8?q?a" * 30_000 + b"\n\nx\n",
    "words-closed-once": lambda: b"Subject: " + b"=?utf-8?q?a" * 30_000 + b"?=\n\nx\n",
    "words-of-many-charsets": lambda: b"Subject: " + b" ".join(b"=?x%d?q?a?=" % n for n in range(20_000)) + b"\n\n",
    "boundaries-almost": lambda: HEAD + b"Content-Type: multipart/mixed; boundary=b\n\n" + b"--bX\n" * 1_000_000,
    "many-boundaries": lambda: (
        b"Content-Type: multipart/mixed" + b"".join(b"; boundary=b%d" % n for n in range(20_000))
    ),
    "two-boundaries-50-deep": lambda: b"Content-Type: multipart/mixed; boundary=a; boundary=b\n\n--a\n" * 50,
    "parameters-not-closed": lambda: b"Content-Type: text/plain" + b'; a="' * 50_000 + b"\n\nx\n",
    "html-not-closed": lambda: b"Content-Type: text/html\n\n" + b"<a x='" * 90_000,
    "html-of-blanks": lambda: b"Content-Type: text/html\n\n" + b" \n" * 1_000_000,
    "html-of-digits": lambda: b"Content-Type: text/html\n\n&#" + b"1" * 1_000_000,
    "quoted-printable-of-blanks": lambda: b"Content-Transfer-Encoding: quoted-printable\n\n" + b" " * 2_000_000 + b"x",
    "quoted-printable-of-equals": lambda: b"Content-Transfer-Encoding: quoted-printable\n\n" + b"=" * 2_000_000,
    "base64-of-padding": lambda: b"Content-Transfer-Encoding: base64\n\n" + b"QQ==" * 500_000,
    "uuencode-begins": lambda: HEAD + b"\n" + b"begin 644 a\n" * 100_000,
    "utf-7-of-surrogates": lambda: b"Content-Type: text/plain; charset=utf-7\n\n" + b"+2AA-" * 100_000,
    "bytes-of-no-charset": lambda: b"Content-Type: text/plain; charset=cp874\n\n" + b"\xff" * 2_000_000,
    "links-not-closed": lambda: b"Content-Type: text/html\n\n" + b"href = " * 90_000,
}
