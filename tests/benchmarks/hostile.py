"""What hostile messages and rule files cost: `python -m tests.benchmarks.hostile`, exit status 1 past the bound.

Each is read in a process of its own, which rules ask for everything: CPU seconds, and the memory that it took beyond
what it had with the message (or file) in its hands. The bound: 0.5 s, and 64 MiB above the message's own size.
"""

from __future__ import annotations

import os
import resource
import struct
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial

from milterapp.mail.envelope import Envelope, Stage
from milterapp.mail.message import Mail
from milterapp.rules.decide import decide
from milterapp.rules.facts import Facts
from milterapp.rules.load import load
from milterapp.rules.policy import Policy
from tests.benchmarks.table import render
from tests.mail.hostile import HEAD, MESSAGES
from tests.rules.test_hostile import FILES

CPU, MEMORY = 0.5, 64 << 20

RULES = b"""
rules:
  - name: everything
    if:
      any:
        - subject: {regex: 'in.?voice'}
        - from: {domain: nowhere.example}
        - addressed_to: {name: {contains: nobody}}
        - header: {X-None: {regex: '^a+b'}}
        - kind: encrypted
        - malformed: {contains: nothing at all}
        - body: {regex: '(limited|special) offer'}
        - html: {contains: 'javascript:'}
        - raw: {contains: zzzzzz}
        - url: .nowhere.example
        - attachment: {name: {glob: '*.exe'}}
        - attachment: {size: {over: 1 GB}}
        - size: {over: 1 GB}
    then:
      file: Box
"""

_LINE = b"The quick brown fox jumps over the lazy dog, and so does every letter here.\n"
_BASE64 = b"VGhlIHF1aWNrIGJyb3duIGZveCBqdW1wcyBvdmVyIHRoZSBsYXp5IGRvZywgYW5kIHNvIGRvZXM=\n"
LARGE: dict[str, Callable[[], bytes]] = {
    "50-mb-of-text": lambda: HEAD + b"\n" + _LINE * (50_000_000 // len(_LINE)),
    "50-mb-of-8-bit-text": lambda: HEAD + b"\n" + ("Grüße, 你好\n".encode() * (50_000_000 // 17)),
    "50-mb-of-html": lambda: HEAD + b"Content-Type: text/html\n\n" + b"<p>a <a href=http://x/>b</a>\n" * 1_720_000,
    "50-mb-of-base64-text": lambda: (
        HEAD + b"Content-Transfer-Encoding: base64\n\n" + _BASE64 * (50_000_000 // len(_BASE64))
    ),
    "50-mb-attached": lambda: (
        HEAD + b"Content-Type: application/pdf; name=a.pdf\nContent-Transfer-Encoding: base64\n\n"
        + _BASE64 * (50_000_000 // len(_BASE64))
    ),
    "50-mb-of-one-line": lambda: HEAD + b"\n" + b"x" * 50_000_000,
}  # fmt: skip


def measured(make: Callable[[], bytes], read: Callable[[bytes], str]) -> tuple[float, int, str]:
    """Return CPU seconds, bytes beyond the material, and the answer, of reading it in a child."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            raw = make()
            _reset_peak()
            before, began = _resident(), resource.getrusage(resource.RUSAGE_SELF)
            answer = read(raw)
            ended = resource.getrusage(resource.RUSAGE_SELF)
            cpu = ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime
            os.write(theirs, struct.pack("=dq", cpu, _resident("VmHWM") - before) + answer.encode()[:200])
            status = 0
        finally:
            os._exit(status)
    os.close(theirs)
    with os.fdopen(ours, "rb") as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    cpu, memory = struct.unpack_from("=dq", said)
    return cpu, memory, said[16:].decode()


def _reset_peak() -> None:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # VmHWM begins anew (proc(5))


def _resident(what: str = "VmRSS") -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(f"{what}:"))


def _decided(policy: Policy) -> Callable[[bytes], str]:
    def decided(raw: bytes) -> str:
        facts = Facts(Stage.BODY, Envelope(), "a@example.org", Mail(raw), datetime(2026, 1, 1, tzinfo=UTC))
        decision = decide(policy, facts)
        return f"could not tell: {decision.could_not_tell}" if decision.could_not_tell else "decided"

    return decided


def _loaded(source: bytes) -> str:
    policy, problems = load(source, "f", site=False)
    return f"refused: {problems[0].text}" if policy is None else f"{len(policy.rules)} rules"


def main() -> int:
    """Print the table; return 1 where something is past the bound."""
    policy, problems = load(RULES, "rules.yaml", site=False)
    assert policy is not None, problems
    cases: Mapping[str, tuple[Callable[[], bytes], Callable[[bytes], str]]] = {
        **{name: (make, _decided(policy)) for name, make in {**MESSAGES, **LARGE}.items()},
        **{f"rules: {name}": (partial(bytes, source), _loaded) for name, source in FILES.items()},
    }
    rows, past = [], []
    for name, (make, read) in cases.items():
        cpu, memory, answer = measured(make, read)
        if cpu > CPU or memory > MEMORY:
            past.append(name)
        rows.append([name, f"{cpu:.2f}", f"{memory / (1 << 20):.0f}", answer[:70]])
    print(render(["what", "CPU, s", "MiB more", "answer"], rows))
    print(f"past {CPU} s or {MEMORY >> 20} MiB: {', '.join(past) or 'none'}")
    return 1 if past else 0


if __name__ == "__main__":
    sys.exit(main())
