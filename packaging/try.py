"""Send rules/examples through a real Postfix, say what became of each message and why, and hold the dry run to it.

Must never: run outside packaging/world (packaging/try starts it there), or take the dry run's word for what happened:
one is read from mailboxes and SMTP answers, the other is `milterapp test --json`, and where they differ the exit
status is 1.
"""
# ruff: noqa: T201 - a program that prints

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.header import decode_header, make_header
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import yaml  # noqa: E402

from tests.postfix.harness import DOMAIN, PEOPLE, Answer, Site, in_world  # noqa: E402
from tests.postfix.mailboxes import header  # noqa: E402

EXAMPLES = ROOT / "rules/examples"


@dataclass(frozen=True, slots=True)
class Case:
    """One entry of messages.yaml."""

    file: str
    becomes: str
    client: str
    sender: str
    recipients: tuple[str, ...]
    data: bytes
    site: str
    personal: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One thing that became of a message: a word, where, and what is said of it; only word and place are compared."""

    word: str
    place: str
    said: str = ""
    why: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, str]:
        """Return what reality and dry run must agree on."""
        return self.word, self.place


def main() -> int:
    """Run all cases; return 0 where each became what the dry run says."""
    if not in_world():
        print("packaging/try.py: start it with packaging/try", file=sys.stderr)
        return 64
    begun = time.monotonic()
    site = Site()
    try:
        site.install()
        site.attach()
        site.site_rules((EXAMPLES / "site.yaml").read_text())
        site.start()
        for person in PEOPLE:
            site.rules(person, (EXAMPLES / f"{person}.yaml").read_text())
        print("A throwaway Postfix with milterapp attached (milterapp setup --apply), rules/examples/*.yaml in place.")
        differing = [case.file for case in cases() if not show(site, case)]
    finally:
        site.stop()
    print()
    if differing:
        print(f"Reality and `milterapp test` differ: {', '.join(differing)}")
        return 1
    print(f"Each became what `milterapp test` says of it. {time.monotonic() - begun:.0f} s, and nothing stays behind.")
    return 0


def cases() -> list[Case]:
    """Return the messages with their envelopes."""
    listed = yaml.safe_load((EXAMPLES / "messages.yaml").read_text())["messages"]
    return [
        Case(
            one["file"],
            one["becomes"],
            one["client"],
            one["sender"],
            tuple(one["recipients"]),
            (EXAMPLES / one["file"]).read_bytes(),
            one["site"],
            one["personal"],
        )
        for one in listed
    ]


def show(site: Site, case: Case) -> bool:
    """Send one message, print what became of it; return whether the dry run says the same."""
    print(f"\n{case.file}: {case.becomes}")
    print(f"    from <{case.sender}> to {', '.join(f'<{one}>' for one in case.recipients)}")
    before = snapshot(site)
    answer = site.send(case.data, case.recipients, sender=case.sender, client=case.client)
    site.settle()
    happened = list(observed(site, case, answer, before))
    foretold, edited = dry_run(site, case)
    why = {one.key: one.why for one in foretold}
    told: set[str] = set()
    for one in happened:
        print(f"    {one.said}")
        for reason in why.get(one.key, ()):
            if reason not in told:
                print(f"        because of {reason}")
            told.add(reason)
    same = Counter(one.key for one in happened) == Counter(one.key for one in foretold)
    if not same:
        print(f"    DIFFERS: `milterapp test` says {', '.join(f'{one.word} {one.place}' for one in foretold)}")
    for place, data in originals(site, case, before):
        if not carries(data, edited):
            same = False
            print(f"    DIFFERS: what came to {place} is not the message as `milterapp test --output` writes it")
    return same


# What happened


def snapshot(site: Site) -> dict[str, list[bytes]]:
    """Return all mail that has arrived, by place: `alice`, `bob Lists/Python`, `elsewhere`."""
    found = {
        f"{person} {folder}".strip(): messages for person in PEOPLE for folder, messages in site.folders(person).items()
    }
    return {**found, "elsewhere": site.elsewhere()}


def arrived(site: Site, before: dict[str, list[bytes]]) -> Iterator[tuple[str, bytes]]:
    """Yield (place, message) of what has arrived since."""
    for place, messages in snapshot(site).items():
        for number in (Counter(messages) - Counter(before.get(place, []))).elements():
            yield place, number


def originals(site: Site, case: Case, before: dict[str, list[bytes]]) -> list[tuple[str, bytes]]:
    """Return (place, message) of the copies of the message itself that arrived."""
    wanted = header(case.data, "Message-ID")
    return [(place, data) for place, data in arrived(site, before) if header(data, "Message-ID") == wanted]


def observed(site: Site, case: Case, answer: Answer, before: dict[str, list[bytes]]) -> Iterator[Outcome]:
    """Yield what became of the message, read from the SMTP answer and the mailboxes."""
    if answer.code != 250:
        yield Outcome("refused in-line", case.sender, f"refused in-line, the client heard: {answer.code} {answer.text}")
        return
    wanted = header(case.data, "Message-ID")
    for place, data in arrived(site, before):
        person, _, folder = place.partition(" ")
        if person == "elsewhere":
            person = header(data, "X-Original-To")[0]
        if header(data, "Message-ID") == wanted:
            subject = header(data, "Subject")[0]
            changed = f", its subject now: {readable(subject)}" if [subject] != header(case.data, "Subject") else ""
            where = f"filed into {person}'s folder {folder}" if folder else f"delivered to {person}'s inbox"
            forwarded = "" if f"{person}@{DOMAIN}" in case.recipients else "forwarded, and "
            yield Outcome("mail", place, f"{forwarded}{where}{changed}")
        elif header(data, "In-Reply-To") == wanted:
            first = data.partition(b"\n\n")[2].strip().decode().splitlines()[0]
            yield Outcome("answer", person, f"answered, {person} reads: {first}")
        elif any(one.startswith("multipart/report") for one in header(data, "Content-Type")):
            found = re.search(r"^<[^>]+>[^:]*: ((?:.+\n)+)", data.decode("utf-8", "replace"), re.MULTILINE)
            said = " ".join(found[1].split()) if found else "?"
            yield Outcome("notice", person, f"refused, {person} reads in a notice: {said}")
        else:
            yield Outcome("something else", place, f"something else came to {place}")


# What the dry run says


def dry_run(site: Site, case: Case) -> tuple[list[Outcome], bytes]:
    """Return what `milterapp test` says will become of the message, and the message as the site's rules edit it."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "edited.eml"
        options = ["--site", "--client", case.client, "--sender", case.sender, "--output", str(output)]
        options += ["--expect", case.site]
        for one in case.recipients:
            options += ["--recipient", one]
        decision = ask(site, case.data, *options)
        why = reasons(decision)
        if decision["verdict"] in ("reject", "defer"):
            return [Outcome("refused in-line", case.sender, why=why)], case.data
        edited = output.read_bytes()
    outcomes: list[Outcome] = []
    for recipient in case.recipients:
        outcomes += personal(site, edited, case.sender, recipient, why, expect=case.personal[recipient])
    return outcomes, edited


def personal(
    site: Site, data: bytes, sender: str, recipient: str, before: tuple[str, ...], *, expect: str = ""
) -> Iterator[Outcome]:
    """Yield what one recipient's rules will make of the message; a forward within the host passes rules there."""
    local, _, domain = recipient.partition("@")
    if domain != DOMAIN:
        yield Outcome("mail", "elsewhere")
        return
    decision = ask(
        site, data, "--rules", f"/home/{local}/.milterapp/rules.yaml", "--user", local, "--sender", sender,
        "--recipient", recipient, *(["--expect", expect] if expect else []),
    )  # fmt: skip
    why = (*before, *reasons(decision))
    if decision["verdict"] == "reject":
        yield Outcome("notice", sender.partition("@")[0] if sender.endswith(f"@{DOMAIN}") else sender, why=why)
        return
    for one in decision["deliveries"]:
        match one["action"]:
            case "keep":
                yield Outcome("mail", local, why=why)
            case "file":
                yield Outcome("mail", f"{local} {one['folder']}", why=why)
            case "forward":
                yield from personal(site, data, sender, one["to"], why)
            case "reply" if not one["refused"]:
                yield Outcome("answer", sender.partition("@")[0] if sender.endswith(f"@{DOMAIN}") else sender, why=why)


def ask(site: Site, data: bytes, *options: str) -> dict[str, Any]:
    """Return what `milterapp test --json` says."""
    done = site.milterapp("test", "--json", *options, message=data, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def reasons(decision: dict[str, Any]) -> tuple[str, ...]:
    """Return why: each rule that matched, with its place and what it saw."""
    return tuple(
        f"`{one['name']}` ({re.sub('^/home/', '~', one['place'])}): {one['reason']}"
        for one in decision["rules"]
        if one["matched"]
    )


def readable(text: str) -> str:
    """Return a header's text with its encoded words decoded."""
    return str(make_header(decode_header(text)))


def carries(delivered: bytes, expected: bytes) -> bool:
    """Return whether a delivered message is the expected one, below what its way has added above it."""
    head, _, body = delivered.replace(b"\r\n", b"\n").partition(b"\n\n")
    wanted_head, _, wanted_body = expected.replace(b"\r\n", b"\n").partition(b"\n\n")
    lines = Counter(head.split(b"\n"))
    return body.rstrip(b"\n") == wanted_body.rstrip(b"\n") and not Counter(wanted_head.split(b"\n")) - lines


if __name__ == "__main__":
    sys.exit(main())
