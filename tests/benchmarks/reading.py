"""What reading a message costs: `python -m tests.benchmarks.reading [--corpus DIR]`.

Beside `email` (compat32) on the same messages: what header rules ask for (subject, from, to, list id, one field by
name, decoded), and what body rules ask for (that, and the decoded text and the attachments' names and sizes). CPU time
of one process, candidates interleaved, summed over the corpus.
"""

from __future__ import annotations

import argparse
import email
import email.header
import email.policy
import email.utils
from collections.abc import Callable
from email.message import Message
from pathlib import Path

from milterapp.mail.message import Mail
from tests.benchmarks.decide import message
from tests.benchmarks.table import interleaved, render


def ours_header(raw: bytes) -> object:
    """Read what header rules ask for."""
    mail = Mail(raw)
    return mail.subject, mail.addresses("from"), mail.addresses("to", "cc"), mail.list_ids, mail.values("x-mailer")


def ours_body(raw: bytes) -> object:
    """Read what body rules ask for."""
    mail = Mail(raw)
    return mail.subject, mail.addresses("from"), mail.text, [(one.names, one.size) for one in mail.attachments]


def _decoded(value: object) -> str:
    try:
        return str(email.header.make_header(email.header.decode_header(str(value))))
    except (LookupError, ValueError, UnicodeError):  # as a filter that must go on would do
        return str(value)


def _addresses(mail: Message, *names: str) -> object:
    return email.utils.getaddresses([_decoded(value) for name in names for value in mail.get_all(name, [])])


def theirs_header(raw: bytes) -> object:
    """Read the same with compat32."""
    mail = email.message_from_bytes(raw, policy=email.policy.compat32)
    return (
        _decoded(mail["subject"]),
        _addresses(mail, "from"),
        _addresses(mail, "to", "cc"),
        mail["list-id"],
        mail["x-mailer"],
    )


def theirs_body(raw: bytes) -> object:
    """Read the same with compat32."""
    mail = email.message_from_bytes(raw, policy=email.policy.compat32)
    texts, files = [], []
    for part in mail.walk():
        if part.is_multipart():
            continue
        data = part.get_payload(decode=True)
        payload = data if isinstance(data, bytes) else b""
        if part.get_content_maintype() == "text" and not part.get_filename():
            try:
                texts.append(payload.decode(part.get_content_charset() or "utf-8", "replace"))
            except LookupError:
                texts.append(payload.decode("latin-1"))
        else:
            files.append((part.get_filename(), len(payload)))
    return _decoded(mail["subject"]), _addresses(mail, "from"), "\n".join(texts), files


def over(read: Callable[[bytes], object], corpus: list[bytes]) -> Callable[[], object]:
    """Return a run over the whole corpus; a reader that raises on a message goes on with the next."""

    def run() -> None:
        for raw in corpus:
            try:
                read(raw)
            except Exception:  # noqa: BLE001 - compat32 does raise on hostile mail; the time it took counts
                continue

    return run


def main() -> None:
    """Print the table of the README."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, help="a folder of messages; default: generated ones of 4, 20 and 100 KB")
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    if given.corpus:
        corpus = [
            path.read_bytes() for path in sorted(given.corpus.rglob("*")) if path.is_file() and path.suffix != ".md"
        ]
    else:
        corpus = [message(size) for size in (4096, 20_000, 100_000)]
    taken = interleaved(
        {
            "header": over(ours_header, corpus),
            "header, email": over(theirs_header, corpus),
            "body": over(ours_body, corpus),
            "body, email": over(theirs_body, corpus),
        },
        rounds=given.rounds,
        seconds=0.5,
    )
    rows = []
    for what in ("header", "body"):
        ours, theirs = taken[what] / len(corpus), taken[f"{what}, email"] / len(corpus)
        rows.append([f"{what} rules", f"{ours * 1e6:.0f}", f"{theirs * 1e6:.0f}", f"{ours / theirs:.2f}"])
    print(f"{len(corpus)} messages, {sum(map(len, corpus)) // len(corpus):,} bytes each on average\n")
    print(render(["reading for", "milterapp, µs", "email compat32, µs", "ratio"], rows))


if __name__ == "__main__":
    main()
