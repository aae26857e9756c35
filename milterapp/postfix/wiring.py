"""How milterapp stands in main.cf and master.cf: the lines, and what each is for. Tables first.

Must never: run anything or read a file; it turns what a site has into what it should have, values in, values out.
Sources: pipe(8), local(8), smtpd(8), cleanup(8), master(5), postconf(5), MILTER_README, FILTER_README.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from milterapp.postfix.postconf import Service

__all__ = [
    "KEEPERS",
    "MILTER",
    "SERVICES",
    "STATUS_FILE",
    "STATUS_TABLE",
    "TRANSPORT",
    "VIRTUAL",
    "Line",
    "Site",
    "Wanted",
    "wanted",
]

TRANSPORT = "milterapp:"
VIRTUAL = "milterapp-virtual:"
MILTER = "{ unix:milterapp/milter, default_action=tempfail }"  # below the queue directory: also for a chroot smtpd
STATUS_FILE = "milterapp-status.regexp"
SERVICES = (
    "milterapp", "milterapp-virtual", "milterapp-hand-back", "milterapp-hand-back-virtual", "milterapp-send",
    "milterapp-cleanup", "milterapp-keep",
)  # fmt: skip
KEEPERS = ("milterapp-cleanup", "milterapp-keep")  # what mail already handed back still needs
TIME_LIMIT = "1200s"  # well above the deadline of milterapp-pipe: what pipe(8) must kill it would bounce

# What pipe(8) would bounce and is a fault of ours, or of this host: try again. A rule's own `5.7.1 text` passes.
STATUS_TABLE = r"""# Written by `milterapp setup`, taken out by `milterapp setup --undo`. See pipe(8), pipe_delivery_status_filter.
/^5\.3\.[0-9]+ (Command (died|time limit).*|unknown mail system error.*|command line usage error.*|internal software error.*|cannot open input.*|service unavailable.*|critical OS file missing.*|input\/output error.*)/  4.3.0 $1
/^5\.[0-9.]+ (can't create user output file.*|local configuration error.*)/  4.3.5 $1
"""  # noqa: E501 - a table of Postfix's, one pattern a line

# How much a process of Postfix's does before another takes its place. Its own 100 is a start, of ten milliseconds, for
# every hundredth message and service on the way.
_LONG_LIVED = {"max_use": "5000"}

# Of main.cf, what a smtpd asks of the world's clients and must not ask of our own process. Who may connect is decided
# by the folder the socket is in.
_SMTPD = {
    **_LONG_LIVED,
    "mynetworks": "127.0.0.0/8,[::1]/128",  # a client on a unix-domain socket counts as 127.0.0.1
    "smtpd_client_restrictions": "",
    "smtpd_helo_restrictions": "",
    "smtpd_sender_restrictions": "",
    "smtpd_relay_restrictions": "permit_mynetworks,reject",
    "smtpd_recipient_restrictions": "permit_mynetworks,reject",
    "smtpd_data_restrictions": "",
    "smtpd_end_of_data_restrictions": "",
    "smtpd_etrn_restrictions": "reject",
    "smtpd_helo_required": "no",
    "smtpd_delay_reject": "yes",
    "smtpd_reject_unlisted_sender": "no",
    "smtpd_reject_unlisted_recipient": "no",
    "strict_rfc821_envelopes": "no",
    "smtpd_tls_security_level": "none",  # outweighs smtpd_use_tls and smtpd_enforce_tls, of which newer versions warn
    "smtpd_tls_wrappermode": "no",
    "smtpd_tls_auth_only": "no",
    "smtpd_tls_req_ccert": "no",
    "smtpd_sasl_auth_enable": "no",
    "smtpd_proxy_filter": "",
    "smtpd_upstream_proxy_protocol": "",
    "smtpd_command_filter": "",
    "smtpd_discard_ehlo_keywords": "",
    "smtpd_discard_ehlo_keyword_address_maps": "",
    "smtpd_reject_footer": "",
    "smtpd_reject_footer_maps": "",
    "smtpd_authorized_xclient_hosts": "",
    "smtpd_authorized_xforward_hosts": "127.0.0.0/8,[::1]/128",  # so that the log names the first client
    "smtpd_client_connection_count_limit": "0",
    "smtpd_client_connection_rate_limit": "0",
    "smtpd_client_message_rate_limit": "0",
    "smtpd_client_recipient_rate_limit": "0",
    "smtpd_client_new_tls_session_rate_limit": "0",
    "smtpd_client_auth_rate_limit": "0",
    "smtpd_recipient_limit": "1000",
    "smtpd_error_sleep_time": "0",
    "smtpd_soft_error_limit": "1001",
    "smtpd_hard_error_limit": "1000",
    "smtpd_junk_command_limit": "1000",
    "smtpd_timeout": "300s",
    "smtpd_forbid_unauth_pipelining": "no",
    "smtpd_forbid_bare_newline": "no",
    "message_size_limit": "0",  # it was small enough when it came
    "local_header_rewrite_clients": "",  # its header stays as it came
    "remote_header_rewrite_domain": "",
}
# Of main.cf, what a lmtp(8) does for other servers and must not do for our own process: the message comes as it is.
_LMTP = {
    **_LONG_LIVED,
    "lmtp_connection_cache_on_demand": "no",  # to ask scache(8) for one costs more than a connection to us
    "lmtp_send_xforward_command": "yes",  # the queue id, by which a retry is known
    "lmtp_line_length_limit": "0",
    "lmtp_tls_security_level": "none",
    "lmtp_sasl_auth_enable": "no",
    "lmtp_discard_lhlo_keywords": "",
    "lmtp_discard_lhlo_keyword_address_maps": "",
    "lmtp_generic_maps": "",
    "lmtp_header_checks": "",
    "lmtp_mime_header_checks": "",
    "lmtp_nested_header_checks": "",
    "lmtp_body_checks": "",
    "lmtp_delivery_status_filter": "",
    "lmtp_reply_filter": "",
    "lmtp_data_done_timeout": "600s",  # above milterapp's own deadlines
}
_HAND_BACK = {
    "content_filter": "milterapp-keep:",
    "cleanup_service_name": "milterapp-cleanup",
    "receive_override_options": "no_unknown_recipient_checks,no_header_body_checks,no_milters,no_address_mappings",
}
_SEND = {
    "content_filter": "",
    "receive_override_options": "no_unknown_recipient_checks",
}
_CLEANUP = {
    **_LONG_LIVED,
    "message_size_limit": "0",
    "in_flow_delay": "0",  # it would slow the delivery that is waiting for it
    "message_reject_characters": "",
    "message_strip_characters": "",
    "strict_7bit_headers": "no",
    "strict_8bitmime": "no",
    "strict_8bitmime_body": "no",
    "strict_mime_encoding_domain": "no",
}
_SYNTAX = re.compile(r"[^A-Za-z0-9_:-]")
_MORE_HOPS = 10  # a hand-back adds a Received field, and no pass through milterapp-keep can loop


@dataclass(frozen=True, slots=True)
class Line:
    """A setting of main.cf and what it is for."""

    name: str
    value: str
    why: str


@dataclass(frozen=True, slots=True)
class Site:
    """What of milterapp Postfix has to know.

    command: the program of the pipe service, each argument its own; virtual: that of virtual domains, () where their
    mail is not to pass personal rules; agents: how many deliveries at once. lmtp, lmtp_virtual: paths of
    the LMTP door's sockets, below the queue directory or from `/`; "" where pipe(8) is the door. transports: what the
    in-line rules may name.
    """

    pipe_user: str
    command: tuple[str, ...]
    agents: int
    lmtp: str = ""
    transports: tuple[str, ...] = ()
    virtual: tuple[str, ...] = ()
    lmtp_virtual: str = ""

    @property
    def transport(self) -> str:
        """Return what mailbox_transport is set to."""
        return f"{TRANSPORT}unix:{self.lmtp}" if self.lmtp else TRANSPORT

    @property
    def virtual_transport(self) -> str:
        """Return what virtual_transport is set to, where it is."""
        return f"{VIRTUAL}unix:{self.lmtp_virtual}" if self.lmtp_virtual else VIRTUAL


@dataclass(frozen=True, slots=True)
class Wanted:
    """The lines of main.cf and the services of master.cf that attach milterapp, each with what it is for."""

    main: tuple[Line, ...]
    services: tuple[tuple[Service, str], ...]

    def settings(self) -> dict[str, str]:
        """Return the settings of main.cf, name to value."""
        return {line.name: line.value for line in self.main}


def wanted(
    site: Site,
    main: Mapping[str, str],
    services: Mapping[str, Service],
    known: frozenset[str],
    status_table: str,
) -> Wanted:
    """Return what attaches milterapp to a Postfix that has `main` and `services` without it.

    known: the parameters this version of Postfix has; others are left out. status_table: path of our STATUS_FILE.
    """
    smtp_chroot = _chroot(services, "cleanup/unix", "-")
    passed = {name: main[name] for name in ("mailbox_transport", "mailbox_transport_maps") if main.get(name)}
    hand_back = {"syslog_name": "postfix/milterapp-hand-back", **_SMTPD, **_HAND_BACK}
    send = {
        "syslog_name": "postfix/milterapp-send",
        **_SMTPD,
        **_SEND,
        "smtpd_milters": _expand(main.get("non_smtpd_milters", ""), "smtpd_milters", main.get("smtpd_milters", "")),
    }
    cleanup = {
        "syslog_name": "postfix/milterapp-cleanup",
        **_CLEANUP,
        "hopcount_limit": str(_number(main.get("hopcount_limit", ""), 50) + _MORE_HOPS),
    }
    keep = {
        "syslog_name": "postfix/milterapp-keep",
        **_LONG_LIVED,
        "alias_maps": "",
        "forward_path": "",
        "mailbox_transport_maps": passed.get("mailbox_transport_maps", ""),
        "mailbox_transport": passed.get("mailbox_transport", ""),
    }
    return Wanted(
        main=tuple(_main(main, site)),
        services=(
            _door(site, known, status_table),
            *(_virtual(site, main, known, status_table, hand_back, smtp_chroot) if site.virtual else ()),
            (
                Service("milterapp-hand-back", "unix", "n", "-", smtp_chroot, "-", "-",
                        f"smtpd{_options(hand_back, known)}"),
                "`keep`: takes a message back from `milterapp submit`, past every rule, straight to milterapp-keep",
            ),
            (
                Service("milterapp-send", "unix", "n", "-", smtp_chroot, "-", "-", f"smtpd{_options(send, known)}"),
                "forwards and replies from `milterapp submit`, routed as any mail",
            ),
            (
                Service("milterapp-cleanup", "unix", "n", "-", smtp_chroot, "-", "0",
                        f"cleanup{_options(cleanup, known)}"),
                "queues what was handed back as it is: it was examined when it came",
            ),
            (
                Service("milterapp-keep", "unix", "-", "n", "n", "-", "-", f"local{_options(keep, known)}"),
                "delivers what was handed back as always; aliases and .forward were expanded before",
            ),
        ),
    )  # fmt: skip


def _door(site: Site, known: frozenset[str], status_table: str) -> tuple[Service, str]:
    """Return the service that local(8) hands mail to, and what it is for."""
    if site.lmtp:
        return (
            _lmtp("milterapp", site, known),
            "delivery: hands a message and its envelope to `milterapp lmtp`, one answer a recipient",
        )
    return (
        _pipe("milterapp", site, site.command, known, status_table),
        "delivery: hands a message and its envelope to `milterapp monitor`; our own failures only defer",
    )


def _lmtp(name: str, site: Site, known: frozenset[str]) -> Service:
    """Return a service of lmtp(8) that reaches the LMTP door."""
    return Service(name, "unix", "-", "-", "n", "-", str(site.agents), f"lmtp{_options(_LMTP, known)}")


def _pipe(name: str, site: Site, command: Iterable[str], known: frozenset[str], status_table: str) -> Service:
    """Return a service of pipe(8) that starts the client."""
    options = _options({**_LONG_LIVED, "pipe_delivery_status_filter": f"regexp:{status_table}"}, known)
    argv = " ".join(_word(one) for one in command)
    envelope = "${sender} ${recipient} ${original_recipient} ${queue_id} ${client_address}"
    line = f"pipe{options} flags=Rq user={site.pipe_user} null_sender= argv={argv} {envelope}"
    return Service(name, "unix", "-", "n", "n", "-", str(site.agents), line)


def _virtual(
    site: Site, main: Mapping[str, str], known: frozenset[str], status_table: str, hand_back: Mapping[str, str],
    chroot: str,
) -> Iterable[tuple[Service, str]]:  # fmt: skip
    """Yield the services for virtual domains: the door, and the hand-back to what was there before."""
    name = VIRTUAL.rstrip(":")
    by_lmtp = bool(site.lmtp_virtual)
    yield (
        _lmtp(name, site, known) if by_lmtp else _pipe(name, site, site.virtual, known, status_table),
        "delivery in virtual domains: as milterapp, but its recipients are those of delivery.recipients",
    )
    before = main.get("virtual_transport") or "virtual"
    options = {
        **hand_back,
        "syslog_name": "postfix/milterapp-hand-back-virtual",
        "content_filter": before if ":" in before else f"{before}:",
    }
    yield (
        Service("milterapp-hand-back-virtual", "unix", "n", "-", chroot, "-", "-", f"smtpd{_options(options, known)}"),
        "`keep` in virtual domains: straight to what virtual_transport was",
    )


def _main(main: Mapping[str, str], site: Site) -> Iterable[Line]:
    inline = "every message passes the in-line rules; tried again later while no milter answers"
    for name, other in (("smtpd_milters", "non_smtpd_milters"), ("non_smtpd_milters", "smtpd_milters")):
        others = main.get(name, "")
        if not _references(others, other):  # else it has ours already, through the other
            yield Line(name, f"{MILTER}, {others}" if others else MILTER, inline)
    if site.transports:
        checks = main.get("milter_header_checks", "")
        yield Line(
            "milter_header_checks",
            ", ".join([_transport_table(site.transports), *([checks] if checks else [])]),
            "a transport that an in-line rule names is this message's",
        )
    if main.get("mailbox_transport_maps"):
        yield Line("mailbox_transport_maps", "", "asked after the rules instead, by milterapp-keep")
    yield Line("mailbox_transport", site.transport, "each local recipient's mail passes that person's rules")
    if not site.lmtp:
        yield Line("milterapp_destination_recipient_limit", "1", "one recipient a delivery")
        yield Line("milterapp_time_limit", TIME_LIMIT, "above milterapp's own deadline, which comes first")
    if site.virtual:
        yield Line(
            "virtual_transport", site.virtual_transport, "each virtual recipient's mail passes that person's rules"
        )
    if site.virtual:
        yield Line("milterapp-virtual_destination_recipient_limit", "1", "one recipient a delivery")
        yield Line(
            "milterapp-virtual_destination_concurrency_limit", "$local_destination_concurrency_limit",
            "who is slow keeps nobody else waiting, as with local(8)",
        )  # fmt: skip
    if site.virtual and not site.lmtp_virtual:
        yield Line("milterapp-virtual_time_limit", TIME_LIMIT, "above milterapp's own deadline, which comes first")
    yield Line("milterapp-keep_destination_recipient_limit", "1", "as local(8) has it")
    yield Line(
        "milterapp-keep_destination_concurrency_limit", "$local_destination_concurrency_limit", "as local(8) has it"
    )


def _transport_table(transports: Iterable[str]) -> str:
    """Return the table (regexp_table(5), within main.cf) that makes our header field a FILTER, for these alone.

    A header that a message brings along is never looked up there, and the milter takes its own away again.
    """
    rules = [f"{{ /^X-Milterapp-Transport: {_SYNTAX.sub(_literal, one)}$$/ FILTER {one} }}" for one in transports]
    return f"regexp:{{ {', '.join(rules)} }}"


def _literal(found: re.Match[str]) -> str:
    return "\\" + found[0]


def _forms(name: str) -> tuple[str, str, str]:
    return f"${name}", f"${{{name}}}", f"$({name})"


def _references(value: str, name: str) -> bool:
    return any(form in value for form in _forms(name))


def _expand(value: str, name: str, replacement: str) -> str:
    for form in _forms(name):
        value = value.replace(form, replacement)
    return value


def _number(text: str, default: int) -> int:
    return int(text) if text.isdecimal() else default


def _chroot(services: Mapping[str, Service], key: str, default: str) -> str:
    """Return the chroot column this distribution gives a like service."""
    found = services.get(key)
    return found.chroot if found else default


def _options(overrides: Mapping[str, str], known: frozenset[str]) -> str:
    """Return ` -o name=value…` as master(5) reads it, braces around a value with blanks."""
    pairs = [(name, value) for name, value in overrides.items() if name in known]
    return "".join(f" -o {_braced(f'{name}={value}')}" for name, value in pairs)


def _braced(text: str) -> str:
    return f"{{ {text} }}" if any(char in text for char in " \t{}") else text


def _word(text: str) -> str:
    """Return one argument of a pipe(8) command; a `$` is doubled, as Postfix would expand it."""
    return _braced(text.replace("$", "$$"))
