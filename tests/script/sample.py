"""What the tests of scripts share: an envelope, a message, and running a script on it in this process."""

from __future__ import annotations

import textwrap
from typing import Any

from milterapp.mail.envelope import Envelope
from milterapp.mail.limits import Limits
from milterapp.script.memory import Memory, Remembered
from milterapp.script.plan import Failure, Plan
from milterapp.script.run import Job, run

__all__ = ["FILE", "MESSAGE", "failed", "job", "planned", "result"]

FILE = "blog.py"
MESSAGE = b"""\
From: =?utf-8?q?J=C3=B6rg?= <joerg@example.org>
To: page@example.com
Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=
Message-ID: <1@example.org>
In-Reply-To: <0@example.com>

hello
world
"""


def job(source: str, raw: bytes = MESSAGE, to: str = "page@example.com", sender: str = "joerg@example.org") -> Job:
    """Return a job for a script's text, its indent taken away."""
    envelope = Envelope(sender=sender, recipients=("alice@example.com",), original_recipient=to)
    return Job(textwrap.dedent(source).encode(), FILE, raw, envelope, Limits())


def result(source: str, memory: Memory | None = None, **message: Any) -> Plan | Failure:
    """Return what comes of a script."""
    return run(job(source, **message), memory or Remembered())


def planned(source: str, memory: Memory | None = None, **message: Any) -> Plan:
    """Return the plan of a script that ends well."""
    found = result(source, memory, **message)
    assert isinstance(found, Plan), found.text + found.trace
    return found


def failed(source: str, memory: Memory | None = None, **message: Any) -> Failure:
    """Return the failure of a script that does not."""
    found = result(source, memory, **message)
    assert isinstance(found, Failure), found
    return found
