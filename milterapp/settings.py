"""What a site may set (milterapp.yaml(5)), as plain values with their defaults.

Must never: read a file, know of YAML (`commands` loads them), or import more than other plain values.
Times are seconds, sizes bytes. A relative path of `personal_rules` is below the recipient's home.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from milterapp.mail.limits import Limits

__all__ = [
    "Accounts", "DeliverySettings", "LmtpSettings", "MilterSettings", "Program", "ScriptSettings", "Settings",
    "SubmitSettings",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Accounts:
    """The Unix accounts of the services, one each, none of them a person's."""

    milter: str = "milterapp-milter"
    pipe: str = "milterapp-pipe"
    monitor: str = "milterapp-monitor"
    submit: str = "milterapp-submit"
    lmtp: str = "milterapp-lmtp"
    script: str = "milterapp-script"


@dataclass(frozen=True, slots=True)
class MilterSettings:
    """The in-line milter. workers 0: one for each core. on_error: accept or defer.

    results_from: networks whose Authentication-Results in the name of authserv_ids stay, `milters` for milters before
    this one. transports: those that rules may name. step_time, message_time: how long a step may take, and the end of a
    message. metrics: port on 127.0.0.1, 0 for none. state: where rates and duplicates are counted, a folder, `memory`
    or a Redis URL.
    """

    socket: str = "/var/spool/postfix/milterapp/milter"
    socket_group: str = "postfix"
    rules: str = "/etc/milterapp/rules.yaml"
    workers: int = 0
    on_error: str = "defer"
    results_from: tuple[str, ...] = ()
    transports: tuple[str, ...] = ()
    step_time: float = 5.0
    message_time: float = 20.0
    metrics: int = 0
    state: str = "/var/lib/milterapp/milter"

    @property
    def script_time(self) -> float:
        """Seconds that all scripts of a message may take together, of those that its end may."""
        return self.message_time / 2


@dataclass(frozen=True, slots=True)
class DeliverySettings:
    """Delivery for each recipient. min_uid, min_gid: the floors; gids: primary groups allowed below min_gid.

    broken_rules: defer or keep. reject: whom a personal reject may be told: always, likely, proven or never.
    agents: how many at once; idle: how long a warm one waits; deadline: one message;
    client: the compiled pipe client, from `/`, "" for the one that Python runs.
    recipients: the file of the recipients of virtual domains, from `/`, "" for none.
    wait: how long a delivery waits for a free agent before it is deferred. maildir: below home, for `file`.
    keep: what `keep` means: postfix, maildir, `lmtp:unix:PATH` or `lmtp:inet:HOST:PORT`. sandbox: the least level
    (full, good, basic) at which a user's scripts run. script_recipients: whom one message may make a script send to;
    script_folders: into how many a script may file one;
    script_messages: mails of a user's scripts in a day; script_output: below home, for the files they write.
    """

    socket: str = "/run/milterapp/monitor/socket"
    client: str = ""
    keep: str = "postfix"
    recipients: str = ""
    personal_rules: str = ".milterapp/rules.yaml"
    rules_before: str = ""
    rules_after: str = ""
    maildir: str = "Maildir"
    min_uid: int = 1000
    min_gid: int = 1000
    gids: tuple[int, ...] = ()
    recipient_delimiter: str = "+"
    broken_rules: str = "defer"
    reject: str = "likely"
    agents: int = 20
    idle: float = 60.0
    deadline: float = 120.0
    wait: float = 60.0
    sandbox: str = "good"
    script_recipients: int = 20
    script_folders: int = 20
    script_messages: int = 500
    script_output: str = ".milterapp/output"


@dataclass(frozen=True, slots=True)
class SubmitSettings:
    """Handing mail to Postfix. hand_back, send: its smtpd sockets for `keep` and for forwards and replies.

    hand_back_virtual: that for `keep` in virtual domains.

    forward_sender: envelope, or recipient. forwards: how many a message. reply_interval: the least time between two
    replies of one rule to one correspondent. script_replies: of one script to one correspondent within an hour.
    daily_replies: of one recipient to all correspondents, whatever answers.
    script_domains: in which a script that is written to may write as any address.
    """

    socket: str = "/run/milterapp/submit/socket"
    state: str = "/var/lib/milterapp/submit"
    hand_back: str = "/var/spool/postfix/public/milterapp-hand-back"
    hand_back_virtual: str = "/var/spool/postfix/public/milterapp-hand-back-virtual"
    send: str = "/var/spool/postfix/public/milterapp-send"
    forward_sender: str = "envelope"
    forwards: int = 4
    reply_interval: float = 7 * 86400.0
    script_replies: int = 10
    daily_replies: int = 200
    script_domains: tuple[str, ...] = ()
    timeout: float = 60.0


@dataclass(frozen=True, slots=True)
class LmtpSettings:
    """The LMTP door. virtual_socket: that for recipients of virtual domains, where there are any.

    socket_group: who may connect; connections: how many at once.
    """

    socket: str = "/var/spool/postfix/milterapp-lmtp/socket"
    virtual_socket: str = "/var/spool/postfix/milterapp-lmtp/virtual"
    socket_group: str = "postfix"
    connections: int = 100


@dataclass(frozen=True, slots=True)
class ScriptSettings:
    """The process that runs the site's scripts for the milter. processes: how many at once."""

    socket: str = "/run/milterapp/script/socket"
    processes: int = 16


@dataclass(frozen=True, slots=True)
class Program:
    """A program that personal rules may start. run: its path from `/` and its first arguments.

    options: rules may give arguments that begin with `-`. time: seconds for one run, and its processor seconds; memory:
    bytes of each of its processes; output: bytes that it may write; processes: how many at once. read, write: folders
    from `/` that it may read and write below, beside the home. network: it may make sockets beyond unix-domain ones.
    """

    run: tuple[str, ...]
    options: bool = False
    time: float = 30.0
    memory: int = 512 << 20
    output: int = 64 << 20
    processes: int = 32
    read: tuple[str, ...] = ("/",)
    write: tuple[str, ...] = ()
    network: bool = False


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything a site may set. log: logfmt or json. authserv_ids: whose Authentication-Results rules may believe.

    programs: those that personal rules may start, by the name that the rules use.
    """

    accounts: Accounts = field(default_factory=Accounts)
    limits: Limits = field(default_factory=Limits)
    milter: MilterSettings = field(default_factory=MilterSettings)
    delivery: DeliverySettings = field(default_factory=DeliverySettings)
    submit: SubmitSettings = field(default_factory=SubmitSettings)
    lmtp: LmtpSettings = field(default_factory=LmtpSettings)
    script: ScriptSettings = field(default_factory=ScriptSettings)
    log: str = "logfmt"
    authserv_ids: tuple[str, ...] = ()
    programs: dict[str, Program] = field(default_factory=dict)
