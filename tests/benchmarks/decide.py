"""What deciding costs as the rules grow: `python -m tests.benchmarks.decide`.

One 4 KB message that no rule matches (the dear case: every rule is looked at), 10 to 10,000 header rules: a third each
of `subject contains`, `from domain` and `header regex`. Beside milterapp: the same patterns in a loop over Python's
`re`, and over `re2` one by one, both on fields that were read beforehand. CPU time of one process, candidates
interleaved.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime

import re2

from milterapp.mail.envelope import Envelope, Stage
from milterapp.mail.message import Mail
from milterapp.rules.decide import decide
from milterapp.rules.facts import Facts
from milterapp.rules.load import load
from milterapp.rules.policy import Policy
from tests.benchmarks.table import interleaved, render

SIZES = (10, 100, 1000, 10_000)
_SUBJECT = "Minutes of the meeting on the 4th, with the figures you had asked for"
_NOW = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)


def message(size: int = 4096) -> bytes:
    """Return a message of so many bytes with a header of eighteen fields, as mail that has crossed three hosts has."""
    received = [
        f"Received: from mx{n}.example.net (mx{n}.example.net [192.0.2.{n}])\r\n\tby mx{n + 1}.example.org with ESMTPS"
        f" id 4Xk{n}\r\n\tfor <bob@example.org>; Mon, 5 Jan 2026 11:0{n}:00 +0000"
        for n in range(3)
    ]
    header = [
        "Return-Path: <ann@office.example.net>",
        *received,
        "DKIM-Signature: v=1; a=rsa-sha256; d=office.example.net; s=s1; h=from:to:subject;",
        "\tbh=" + "A" * 43 + "=;",
        "\tb=" + "B" * 172,
        "From: Ann Example <ann@office.example.net>",
        "To: Bob Example <bob@example.org>, carol@example.org",
        f"Subject: {_SUBJECT}",
        "Date: Mon, 5 Jan 2026 11:00:00 +0000",
        "Message-ID: <20260105110000.4711@office.example.net>",
        "MIME-Version: 1.0",
        "Content-Type: text/plain; charset=utf-8",
        "Content-Transfer-Encoding: 8bit",
        "X-Mailer: Example Mail 12.1",
        "Reply-To: ann@office.example.net",
        "References: <a@example.org> <b@example.org>",
        "In-Reply-To: <b@example.org>",
        "User-Agent: Example/12.1",
    ]
    head = ("\r\n".join(header) + "\r\n\r\n").encode()
    line = b"The figures are in the table below, as they stood at the end of the month.\r\n"
    return (head + line * (size // len(line) + 1))[:size]


def patterns(count: int) -> list[tuple[str, str]]:
    """Return (field, pattern) of so many rules; none of them matches the message."""
    kinds: tuple[Callable[[int], tuple[str, str]], ...] = (
        lambda n: ("subject", f"unpaid item {n}"),
        lambda n: ("from", f"shop{n}.example.com"),
        lambda n: ("x-mailer", rf"^bulk ?mailer {n}\.[0-9]+ "),
    )
    return [kinds[n % 3](n) for n in range(count)]


def rules(count: int) -> bytes:
    """Return a personal rule file of so many rules, one for each of `patterns`."""
    shape = {
        "subject": "subject: {{contains: '{0}'}}",
        "from": "from: {{domain: '{0}'}}",
        "x-mailer": "header:\n        X-Mailer: {{regex: '{0}'}}",
    }
    out = ["rules:"]
    for number, (field, pattern) in enumerate(patterns(count)):
        condition = shape[field].format(pattern)
        out.append(f"  - name: rule {number}\n    if:\n      {condition}\n    then:\n      file: Folder{number % 50}")
    return "\n".join(out).encode()


def policy(count: int) -> tuple[Policy, float]:
    """Return the loaded policy and the CPU seconds that loading it took."""
    source = rules(count)
    begin = time.process_time()
    loaded, problems = load(source, "rules.yaml", site=False)
    taken = time.process_time() - begin
    if loaded is None:
        raise SystemExit("\n".join(map(str, problems)))
    return loaded, taken


def _decider(count: int, raw: bytes) -> Callable[[], object]:
    loaded, _ = policy(count)
    envelope = Envelope(sender="ann@office.example.net", recipients=("bob@example.org",))
    return lambda: decide(loaded, Facts(Stage.BODY, envelope, recipient="bob@example.org", mail=Mail(raw), now=_NOW))


def _loop(count: int, raw: bytes, library: str) -> Callable[[], object]:
    mail = Mail(raw)
    fields = {
        "subject": mail.subject or "",
        "from": mail.addresses("from")[0].domain,
        "x-mailer": mail.values("x-mailer")[0],
    }
    compiled = []
    for field, pattern in patterns(count):
        text = re.escape(pattern) if field == "subject" else rf"^{re.escape(pattern)}$" if field == "from" else pattern
        if library == "re":
            compiled.append((fields[field], re.compile(text, re.IGNORECASE).search))
        else:
            options = re2.Options()
            options.case_sensitive, options.log_errors = False, False
            compiled.append((fields[field], re2.compile(text, options).search))
    return lambda: [None for value, search in compiled if search(value)]


def main() -> None:
    """Print the table of the README."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    raw = message()
    candidates: dict[str, Callable[[], object]] = {}
    for count in SIZES:
        candidates[f"milterapp {count}"] = _decider(count, raw)
        candidates[f"re {count}"] = _loop(count, raw, "re")
        candidates[f"re2 {count}"] = _loop(count, raw, "re2")
    taken = interleaved(candidates, rounds=given.rounds)
    base = taken["milterapp 10"]
    rows = []
    for count in SIZES:
        ours, theirs, single = (taken[f"{name} {count}"] for name in ("milterapp", "re", "re2"))
        rows.append(
            [
                f"{count:,}",
                f"{ours * 1e6:.0f}",
                f"{ours / base:.2f}",
                f"{theirs * 1e6:.0f}",
                f"{single * 1e6:.0f}",
                f"{policy(count)[1]:.2f}",
            ]
        )
    print(render(["rules", "decide, µs", "of 10 rules", "re loop, µs", "re2 one by one, µs", "load, s"], rows))


if __name__ == "__main__":
    main()
