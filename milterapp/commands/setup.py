"""`milterapp setup`: put milterapp into Postfix's configuration, show what that would be, or take it out.

Must never: attach what could not deliver (no account, a client that its account cannot read), or reload a Postfix that
does not run.
"""

from __future__ import annotations

import argparse
import os
import pwd
import stat
import sys
from collections.abc import Iterator

from milterapp.commands import client, configuration, site_file
from milterapp.commands.failure import Failure, reason
from milterapp.postfix import attachment
from milterapp.postfix.plan import elements, notes
from milterapp.postfix.postconf import Configuration, NoPostfix, PostfixError, Service, is_running, read
from milterapp.postfix.record import load
from milterapp.postfix.wiring import STATUS_FILE, STATUS_TABLE, TRANSPORT, Site, Wanted
from milterapp.settings import Settings

__all__ = ["arguments", "run"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to its parser."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--print", dest="action", action="store_const", const="print", help="the lines, and what for")
    what.add_argument(
        "--apply", dest="action", action="store_const", const="apply", help="put them in; again is harmless"
    )
    what.add_argument(
        "--undo", dest="action", action="store_const", const="undo", help="take them out, and nothing else"
    )
    parser.add_argument(
        "--config-dir", metavar="FOLDER", help="where main.cf is, for an instance that is not the main one"
    )
    site_file.argument(parser)
    parser.add_argument(
        "--door", choices=("pipe", "lmtp"), help="how Postfix hands mail over: as it does now, else through pipe(8)"
    )
    parser.add_argument("--no-reload", action="store_true", help="do not have a running Postfix read the new lines")


def run(options: argparse.Namespace) -> int:
    """Do it; return an exit code."""
    if options.action != "print" and os.geteuid() != 0:
        raise Failure(os.EX_NOPERM, f"setup --{options.action} changes Postfix's configuration: run it as root")
    settings = configuration.load(options.config)
    try:
        postfix = read(options.config_dir)
        site = _site(settings, postfix, options.door)
        if options.action == "print":
            return _print(site, postfix, settings)
        if options.action == "apply":
            return _apply(site, postfix, settings, reload=not options.no_reload)
        return _undo(postfix)
    except NoPostfix as error:
        raise Failure(os.EX_UNAVAILABLE, str(error), "install Postfix first, e.g. apt-get install postfix") from error
    except PostfixError as error:
        raise Failure(os.EX_CONFIG, str(error)) from error
    except OSError as error:
        raise Failure(os.EX_CANTCREAT, f"{error.filename or 'Postfix'}: {reason(error)}") from error


def _site(settings: Settings, postfix: Configuration, door: str | None) -> Site:
    """Return what Postfix has to know. door: pipe or lmtp, None for the one that is attached."""
    if door is None:
        attached = postfix.main.get("mailbox_transport", "")
        door = "lmtp" if attached.startswith(TRANSPORT) and attached != TRANSPORT else "pipe"
    command = client.command(settings)
    lmtp = settings.lmtp.socket.removeprefix(f"{postfix.queue}/") if door == "lmtp" else ""
    virtual = client.command(settings, virtual=True) if settings.delivery.recipients else ()
    lmtp_virtual = settings.lmtp.virtual_socket.removeprefix(f"{postfix.queue}/") if lmtp and virtual else ""
    agents, transports = settings.delivery.agents, settings.milter.transports
    return Site(settings.accounts.pipe, command, agents, lmtp, transports, virtual, lmtp_virtual)


def _print(site: Site, postfix: Configuration, settings: Settings) -> int:
    record = load(postfix.directory) if os.access(os.path.join(postfix.directory, "milterapp.undo"), os.R_OK) else None
    _, goal = attachment.goal_of(site, postfix, record)
    for line in _text(goal, postfix):
        print(line)
    client_faults = () if site.lmtp else client.faults(settings)
    for note in (*client_faults, *notes(postfix.main, postfix.services, virtual=bool(site.virtual))):
        print(f"note: {note}", file=sys.stderr)
    return os.EX_OK


def _text(goal: Wanted, postfix: Configuration) -> Iterator[str]:
    yield f"# {postfix.directory}/main.cf"
    why = ""
    for line in goal.main:
        if line.why != why:
            yield f"# {line.why}"
        why = line.why
        yield f"{line.name} = {line.value}".rstrip()
    yield f"\n# {postfix.directory}/master.cf"
    for service, why in goal.services:
        yield f"# {why}"
        yield from _entry(service)
    yield f"\n# {postfix.directory}/{STATUS_FILE}"
    yield STATUS_TABLE.rstrip()


def _entry(service: Service) -> Iterator[str]:
    """Yield a service as lines of master.cf, an option each."""
    program, *words = elements(service.command, " ")
    columns = service.line().split(None, 7)[:7]
    yield " ".join((*columns, program))
    rest: list[str] = []
    while words:
        word = words.pop(0)
        if word == "-o":
            yield f"    -o {words.pop(0)}"
        else:
            rest.append(word)
    if rest:
        yield f"    {' '.join(rest)}"


def _apply(site: Site, postfix: Configuration, settings: Settings, *, reload: bool) -> int:
    obstacles = list(_obstacles(site, postfix, settings))
    if obstacles:
        raise Failure(os.EX_CONFIG, *obstacles)
    changes = attachment.apply(site, postfix)
    for name in changes.main:
        print(f"{postfix.directory}/main.cf: {name}")
    for service in changes.services:
        print(f"{postfix.directory}/master.cf: {service.key}")
    for key in changes.gone:
        print(f"{postfix.directory}/master.cf: {key} taken out")
    for note in notes(postfix.main, postfix.services, virtual=bool(site.virtual)):
        print(f"note: {note}", file=sys.stderr)
    if not changes:
        print("nothing to do: milterapp is attached already")
    elif not reload:
        print("now: postfix reload")
    elif is_running(postfix.queue):
        attachment.reload(postfix.directory)
        print("Postfix has read it")
    if not _is_socket(settings.milter.socket):
        print(
            f"note: no milter at {settings.milter.socket} yet: until `milterapp milter` runs, Postfix answers 4xx",
            file=sys.stderr,
        )
    for ours, door in ((site.lmtp, settings.lmtp.socket), (site.lmtp_virtual, settings.lmtp.virtual_socket)):
        if ours and not _is_socket(door):
            print(f"note: no door at {door} yet: until `milterapp lmtp` runs with it, mail waits", file=sys.stderr)
    return os.EX_OK


def _undo(postfix: Configuration) -> int:
    done = attachment.undo(postfix)
    if not done.found:
        print("nothing to do: milterapp is not attached")
    elif done.waiting:
        shown = ", ".join(done.waiting[:5]) + (", …" if len(done.waiting) > 5 else "")
        print(f"taken out, but for milterapp-keep and milterapp-cleanup: {len(done.waiting)} queued messages need them")
        print(f"({shown}); `postqueue -f`, and once they are delivered `milterapp setup --undo` again")
    else:
        if is_running(postfix.queue):
            attachment.reload(postfix.directory)
        print("taken out")
    return os.EX_OK


def _obstacles(site: Site, postfix: Configuration, settings: Settings) -> Iterator[str]:
    """Yield what would keep mail from being delivered, each with its remedy."""
    accounts = settings.accounts
    wanted = (accounts.milter, accounts.pipe, accounts.monitor, accounts.submit)
    absent = [one for one in (*wanted, *([accounts.lmtp] if site.lmtp else [])) if not _exists(one)]
    if absent:
        yield f"no such account: {', '.join(absent)}: run packaging/accounts (or systemd-sysusers) first"
    if not site.lmtp:
        yield from client.faults(settings)
    if "regexp" not in postfix.tables:
        yield "this Postfix has no regexp tables (postconf -m), which tell our faults from a rule's reject"


def _exists(account: str) -> bool:
    try:
        pwd.getpwnam(account)
    except KeyError:
        return False
    return True


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False
