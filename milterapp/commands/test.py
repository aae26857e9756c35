"""`milterapp test < message.eml`: the dry run: what matched and why, and what would become of the message.

Must never: change anything but the file that --output names, or decide otherwise than milter and agent would.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import replace
from datetime import datetime

from milterapp.commands import configuration, dry_run, envelope, programs, rule_files, show, site_file
from milterapp.commands.failure import UNMET, Failure, cannot_read, complain, reason
from milterapp.commands.rule_files import Rules, User
from milterapp.delivery.programs import Programs
from milterapp.mail.edits import apply
from milterapp.mail.envelope import Envelope
from milterapp.mail.limits import LimitHit
from milterapp.mail.message import Mail
from milterapp.rules.decision import Decision
from milterapp.rules.expectation import Expectation
from milterapp.settings import Settings

__all__ = ["arguments", "run"]

_HEADERLESS = "line 1 of the message is no header field, so all of it is body; expected one such as `Subject: hello`"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.epilog = "The message is read from standard input. milterapp(1) says what the output means."
    rules = parser.add_argument_group("the rules")
    rules.add_argument(
        "--rules", metavar="FILE", nargs="+", action="extend", help="rule files, one policy in this order"
    )
    rules.add_argument("--site", action="store_true", help="as site rules, stage by stage; without --rules, the site's")
    rules.add_argument("--user", metavar="NAME", help="whose rules they are, else the caller's")
    site_file.argument(parser)
    envelope.arguments(parser)
    parser.add_argument("--run-programs", action="store_true", help="run what `command` and `filter` name")
    parser.add_argument("--now", metavar="ISO-TIME", type=_time, help="the time of the delivery, else this moment")
    out = parser.add_argument_group("the output")
    form = out.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object")
    form.add_argument("--diff", action="store_true", help="the edits as a diff too")
    out.add_argument("--output", metavar="FILE", help="write the message there, as edited")
    out.add_argument("--expect", metavar="WORD", type=_expectation, help="exit 1 where something else becomes of it")


def run(options: argparse.Namespace) -> int:
    """Decide about one message and show it. Raises Failure 64, 65, 66, 73 or 78."""
    settings = configuration.load(options.config)
    user = None if options.site else rule_files.user_of(options.user)
    given = _message(settings.limits.message_bytes)
    raw = dry_run.as_postfix_has_it(given, site=options.site)
    output = None if options.output is None else _opened(options.output)
    rules = _rules(options, settings, user)
    complain(*rules.found)
    mail = Mail(raw, settings.limits)
    if _headerless(mail):
        complain(_HEADERLESS)
    assumed = envelope.envelope_of(options, mail, user.name if user else "", settings.delivery.recipient_delimiter)
    with programs.running(settings, user, wanted=options.run_programs) as runner:
        decision = _decide(rules, raw, assumed.envelope, settings, options, runner)
        given = decision.message.encode("latin-1") or given  # what a script answers about
        edited = apply(given, decision.edits, settings.limits) if decision.edits else given
        if runner is not None:
            edited = programs.filtered(runner, decision, edited, assumed.envelope, settings)
    if options.json:
        print(json.dumps(decision.to_json(), indent=2))
    else:
        print(show.decision(decision, assumed, colour=show.colour_wanted()))
        if options.diff:
            print(show.diff(given, edited))
    if output is not None:
        _write(output, edited, options.output)
    if rules.policy is None:
        return os.EX_DATAERR
    met = _as_expected(decision, options.expect)
    return met if not rules.failed else UNMET


def _rules(options: argparse.Namespace, settings: Settings, user: User | None) -> Rules:
    if options.rules:
        return rule_files.named(options.rules, site=options.site, settings=settings)
    if user is None:
        return rule_files.site(settings)
    return rule_files.own(user, settings)


def _decide(
    rules: Rules, raw: bytes, of: Envelope, settings: Settings, options: argparse.Namespace, runner: Programs | None
) -> Decision:
    if rules.policy is None:
        return dry_run.broken(rules.problems, settings, site=options.site)
    now = options.now or datetime.now().astimezone()
    if options.site:
        decision = dry_run.site(rules.policy, raw, of, settings, now, rules.scripts)
    else:
        decision = dry_run.personal(rules.policy, raw, of, settings, now, rules.scripts, runner)
    return replace(decision, problems=rules.found)


def _message(most: int) -> bytes:
    """Return what stands on standard input, bounded. Raises Failure 65."""
    if sys.stdin is None:
        raise Failure(os.EX_NOINPUT, "standard input is closed, expected a message there")
    if sys.stdin.isatty():
        complain("reading the message from the terminal, up to Ctrl-D (else: milterapp test < message.eml)")
    try:
        raw = sys.stdin.buffer.read(most + 1)
    except OSError as error:
        raise cannot_read("standard input", error) from error
    if not raw.strip():
        raise Failure(os.EX_DATAERR, "the message is empty, expected one on standard input")
    if len(raw) > most:
        raise Failure(os.EX_DATAERR, f"the message is larger than limits.message_bytes, {most} bytes")
    return raw


def _headerless(mail: Mail) -> bool:
    try:
        return not mail.header
    except LimitHit:
        return False  # it has too much of one


def _opened(path: str) -> int:
    """Return a descriptor of the file to write, which keeps what it holds until then. Raises Failure 73."""
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Failure(os.EX_CANTCREAT, f"{path}: cannot write: {reason(error)}") from error


def _write(descriptor: int, message: bytes, path: str) -> None:
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.truncate(0) if file.seekable() else None
            file.write(message)
    except OSError as error:
        raise Failure(os.EX_CANTCREAT, f"{path}: cannot write: {reason(error)}") from error


def _as_expected(decision: Decision, expected: Expectation | None) -> int:
    unmet = "" if expected is None else expected.unmet(decision)
    if not unmet:
        return os.EX_OK
    complain(f"expected {expected}, but {unmet}")
    return UNMET


def _expectation(text: str) -> Expectation:
    try:
        return Expectation.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _time(text: str) -> datetime:
    """Return an ISO 8601 time, in this host's zone where it names none."""
    try:
        return datetime.fromisoformat(text).astimezone()
    except ValueError:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a time such as 2026-05-01T22:30") from None
