"""`milterapp setup` on configurations of every shape, through the real postconf(1) and postfix(1)."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.postfix.harness import PYTHON, Site, message

pytestmark = [pytest.mark.root, pytest.mark.postfix]

Setup = Callable[..., subprocess.CompletedProcess[bytes]]

PLAIN = b"compatibility_level = 3.6\n"
SHAPES = {
    "plain": PLAIN,
    "no newline at the end": b"compatibility_level = 3.6\nmyhostname = mx.example.org",
    "comments and folded values": (
        b"# main\ncompatibility_level = 3.6\nsmtpd_milters =\n    inet:localhost:8891,\n"
        b"# between\n    inet:localhost:8892\n"
        b"\n\n# end\n"
    ),
    "milters by reference": PLAIN + b"smtpd_milters = inet:localhost:1\nnon_smtpd_milters=$smtpd_milters\n",
    "a transport before": b"compatibility_level = 3.6\nmailbox_transport = lmtp:unix:private/dovecot-lmtp\n",
    "transports by table": b"compatibility_level = 3.6\nmailbox_transport_maps = static:lmtp:unix:private/x\n",
    "procmail": b'compatibility_level = 3.6\nmailbox_command = /usr/bin/procmail -a "$EXTENSION"\n',
    "bytes that are no UTF-8": b"# caf\xe9\ncompatibility_level = 3.6\n",
}


@pytest.fixture
def instance(tmp_path: Path) -> Path:
    """A configuration directory of its own, with its own queue: another instance, not running."""
    folder = tmp_path / "etc"
    folder.mkdir()
    (folder / "master.cf").write_bytes(Path("/etc/postfix/master.cf").read_bytes())
    for name in ("post-install", "postfix-files", "postfix-script", "dynamicmaps.cf"):
        source = Path("/etc/postfix") / name
        if source.exists():
            shutil.copy2(source, folder / name)
    return folder


@pytest.fixture
def setup(instance: Path, tmp_path: Path) -> Setup:
    """Return a function that runs setup on that instance."""

    def run(*options: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [PYTHON, "-I", "-m", "milterapp", "setup", "--config-dir", str(instance), *options],
            capture_output=True,
            check=False,
            cwd="/",
        )

    return run


def configure(instance: Path, main: bytes) -> None:
    """Write main.cf, its queue and data beside it, and a master.cf without milterapp."""
    own = f"queue_directory = {instance.parent}/queue\ndata_directory = {instance.parent}/data\n".encode()
    (instance / "main.cf").write_bytes(own + main)
    (instance.parent / "queue").mkdir(exist_ok=True)
    (instance.parent / "data").mkdir(exist_ok=True)
    subprocess.run(["chown", "postfix:", str(instance.parent / "data")], check=True)
    lines = Path("/usr/share/postfix/master.cf.dist")
    source = lines if lines.exists() else Path("/etc/postfix/master.cf.proto")
    (instance / "master.cf").write_bytes(source.read_bytes())
    for name in ("main.cf", "master.cf"):
        os.utime(instance / name, (0, 0))  # Postfix waits two seconds for a file that was just written


def files(instance: Path) -> dict[str, bytes]:
    """Return what the folder holds."""
    return {one.name: one.read_bytes() for one in instance.iterdir()}


@pytest.mark.parametrize("main", SHAPES.values(), ids=SHAPES.keys())
def test_undo_restores_every_byte(setup: Setup, instance: Path, main: bytes) -> None:
    """Whatever main.cf says: Postfix takes our lines, a second --apply changes nothing, --undo leaves no trace."""
    configure(instance, main)
    before = files(instance)
    done = setup("--apply")
    assert done.returncode == 0, done.stderr
    check = subprocess.run(["postfix", "-c", str(instance), "check"], check=False, capture_output=True)
    assert (check.returncode, check.stderr) == (0, b"")
    unused = subprocess.run(["postconf", "-c", str(instance), "-n"], check=True, capture_output=True)
    assert b"warning" not in unused.stderr
    attached = files(instance)
    assert attached != before
    done = setup("--apply")
    assert (done.returncode, done.stdout) == (0, b"nothing to do: milterapp is attached already\n")
    assert files(instance) == attached
    done = setup("--undo")
    assert (done.returncode, done.stdout) == (0, b"taken out\n")
    assert files(instance) == before


@pytest.mark.parametrize("door", ["pipe", "lmtp"])
@pytest.mark.parametrize(
    "before", ["", "virtual_transport = lmtp:unix:private/dovecot-lmtp\n"], ids=["virtual", "lmtp"]
)
def test_virtual_domains_are_attached_where_the_site_asks(
    setup: Setup, instance: Path, tmp_path: Path, before: str, door: str
) -> None:
    """With delivery.recipients virtual_transport is ours, hand-back goes to what it was, and undo leaves no trace."""
    configure(instance, PLAIN + before.encode())
    config = tmp_path / "milterapp.yaml"
    config.write_text("delivery:\n  recipients: /etc/milterapp/recipients\n")
    original = files(instance)
    done = setup("--apply", "--config", str(config), "--door", door)
    assert done.returncode == 0, done.stderr
    assert b"pass no personal rules" not in done.stderr
    postconf = ["postconf", "-c", str(instance)]
    check = subprocess.run(["postfix", "-c", str(instance), "check"], check=False, capture_output=True)
    assert (check.returncode, check.stderr) == (0, b"")
    value = subprocess.run([*postconf, "-h", "virtual_transport"], check=True, capture_output=True)
    nexthop = "unix:/var/spool/postfix/milterapp-lmtp/virtual" if door == "lmtp" else ""
    assert value.stdout.decode() == f"milterapp-virtual:{nexthop}\n"
    master = subprocess.run([*postconf, "-M"], check=True, capture_output=True, text=True).stdout
    (back,) = [line for line in master.splitlines() if line.startswith("milterapp-hand-back-virtual")]
    wanted = before.partition(" = ")[2].strip() or "virtual:"
    assert f"content_filter={wanted} " in back
    (virtual,) = [line for line in master.splitlines() if line.startswith("milterapp-virtual")]
    assert ("--virtual=/run/milterapp/monitor/socket ${sender}" in virtual) == (door == "pipe")
    assert (" -o lmtp_send_xforward_command=yes" in virtual) == (door == "lmtp")
    done = setup("--apply", "--config", str(config))
    assert done.stdout == b"nothing to do: milterapp is attached already\n"
    assert setup("--undo").stdout == b"taken out\n"
    assert files(instance) == original


def test_what_the_site_wants_no_more_goes(setup: Setup, instance: Path, tmp_path: Path) -> None:
    """Applied again without delivery.recipients, the services for virtual domains go; undo still leaves no trace."""
    configure(instance, PLAIN)
    config = tmp_path / "milterapp.yaml"
    config.write_text("delivery:\n  recipients: /etc/milterapp/recipients\n")
    original = files(instance)
    assert setup("--apply", "--config", str(config)).returncode == 0
    config.write_text("log: json\n")
    done = setup("--apply", "--config", str(config))
    assert (done.returncode, done.stderr.count(b"Traceback")) == (0, 0)
    gone = [line for line in done.stdout.decode().splitlines() if line.endswith(" taken out")]
    assert [line.split()[-3] for line in gone] == ["milterapp-hand-back-virtual/unix", "milterapp-virtual/unix"]
    assert b"virtual" not in (instance / "master.cf").read_bytes().partition(b"milterapp")[2]
    assert setup("--apply", "--config", str(config)).stdout == b"nothing to do: milterapp is attached already\n"
    assert setup("--undo").stdout == b"taken out\n"
    assert files(instance) == original


def test_a_compiled_client_takes_the_place_of_pythons(setup: Setup, instance: Path, tmp_path: Path) -> None:
    """With delivery.client set, argv= of both pipe services is that; without, Python's again; undo leaves no trace."""
    configure(instance, PLAIN)
    original = files(instance)
    config = tmp_path / "milterapp.yaml"
    site = "delivery:\n  recipients: /etc/milterapp/recipients\n  socket: /run/other\n"
    config.write_text(site)
    assert setup("--apply", "--config", str(config)).returncode == 0
    python = (instance / "master.cf").read_text()
    config.write_text(f"{site}  client: /bin/true\n")
    printed = setup("--print", "--config", str(config)).stdout.decode()
    done = setup("--apply", "--config", str(config))
    assert (done.returncode, done.stdout.count(b"master.cf: ")) == (0, 2)
    compiled = (instance / "master.cf").read_text()
    for option in ("--socket=/run/other", "--virtual=/run/other"):
        for text in (printed, " ".join(compiled.split())):
            assert f"argv=/bin/true {option} ${{sender}} ${{recipient}} " in text
    assert ("pipe.py" in python, "pipe.py" in compiled) == (True, False)
    assert setup("--apply", "--config", str(config)).stdout == b"nothing to do: milterapp is attached already\n"
    config.write_text(site)
    assert setup("--apply", "--config", str(config)).returncode == 0
    assert "pipe.py --socket=/run/other" in " ".join((instance / "master.cf").read_text().split())
    config.write_text(f"{site}  client: /bin/true\n")
    assert setup("--apply", "--config", str(config)).returncode == 0
    assert setup("--undo").stdout == b"taken out\n"
    assert files(instance) == original


@pytest.mark.parametrize(
    ("client", "says"),
    [
        pytest.param("/nonexistent/client", b"No such file or directory: make it with packaging/client", id="absent"),
        pytest.param("/etc/passwd", b"/etc/passwd is no file that every account may execute", id="no program"),
        pytest.param("bin/client", b"expected a path from `/`", id="relative"),
    ],
)
def test_a_client_that_cannot_be_used_is_named_before_anything_changes(
    setup: Setup, instance: Path, tmp_path: Path, client: str, says: bytes
) -> None:
    """A compiled client that is not there, or is none, is a problem of the configuration, 78, and nothing changes."""
    configure(instance, PLAIN)
    config = tmp_path / "milterapp.yaml"
    config.write_text(f"delivery:\n  client: {client}\n")
    before = files(instance)
    done = setup("--apply", "--config", str(config))
    assert (done.returncode, says in done.stderr, b"Traceback" in done.stderr) == (78, True, False), done.stderr
    assert files(instance) == before


def test_undo_leaves_what_was_changed_since(setup: Setup, instance: Path) -> None:
    """Lines that came after --apply stay, in main.cf and master.cf; ours go."""
    configure(instance, PLAIN + b"smtpd_milters = inet:localhost:1\n")
    assert setup("--apply").returncode == 0
    postconf = ["postconf", "-c", str(instance)]
    subprocess.run([*postconf, "-e", "relayhost = [smart.example]"], check=True)
    subprocess.run([*postconf, "-M", "-e", "other/unix=other unix - - - - - smtp"], check=True)
    assert setup("--undo").returncode == 0
    main = (instance / "main.cf").read_text()
    master = (instance / "master.cf").read_text()
    assert "relayhost = [smart.example]" in main
    assert "smtpd_milters = inet:localhost:1" in main
    assert "milterapp" not in main + master
    assert "other      unix" in master
    assert not (instance / "milterapp.undo").exists()


def test_undo_without_its_record_takes_out_what_is_plainly_ours(setup: Setup, instance: Path) -> None:
    """Where the record is lost, undo still takes our services, milters and transport out."""
    configure(instance, PLAIN + b"smtpd_milters = inet:localhost:1\n")
    assert setup("--apply").returncode == 0
    (instance / "milterapp.undo").unlink()
    assert setup("--undo").returncode == 0
    text = (instance / "main.cf").read_text() + (instance / "master.cf").read_text()
    assert "milterapp" not in text
    assert "smtpd_milters = inet:localhost:1" in text


def test_undo_of_nothing(setup: Setup, instance: Path) -> None:
    """Undo where nothing is attached says so and changes nothing."""
    configure(instance, PLAIN)
    before = files(instance)
    done = setup("--undo")
    assert (done.returncode, done.stdout) == (0, b"nothing to do: milterapp is not attached\n")
    assert files(instance) == before


def test_what_is_printed_is_what_is_done(setup: Setup, instance: Path) -> None:
    """--print shows each line with its reason, changes nothing, and --apply then makes exactly these."""
    configure(instance, PLAIN)
    before = files(instance)
    printed = setup("--print").stdout.decode()
    assert files(instance) == before
    setup("--apply")
    main = subprocess.run(["postconf", "-c", str(instance), "-n"], check=True, capture_output=True, text=True).stdout
    ours = [
        line
        for line in main.splitlines()
        if line.startswith(("milterapp", "mailbox", "smtpd_milters", "non_smtpd_milters"))
    ]
    assert len(ours) >= 5
    for line in ours:
        assert line in printed.splitlines()
    for service in ("milterapp", "milterapp-hand-back", "milterapp-send", "milterapp-cleanup", "milterapp-keep"):
        assert f"\n{service} unix " in printed
    assert (instance / "milterapp-status.regexp").read_text().strip() in printed


def test_a_configuration_that_postfix_refuses_is_taken_back(setup: Setup, instance: Path) -> None:
    """Where `postfix check` fails, --apply leaves every file as it was and passes on what Postfix says, 78."""
    configure(instance, PLAIN + b"default_privs = nosuchaccount\nmail_owner = nosuchaccount\n")
    before = files(instance)
    done = setup("--apply")
    assert done.returncode == 78
    assert b"nosuchaccount" in done.stderr
    assert files(instance) == before


@pytest.mark.parametrize(
    ("options", "status", "says"),
    [
        ((), 64, b"--print"),
        (("--apply", "--undo"), 64, b"not allowed with"),
        (("--undo", "--aply"), 64, b"did you mean '--apply'"),
        (("--apply", "--config", "/nonexistent.yaml"), 66, b"/nonexistent.yaml"),
    ],
    ids=["no action", "two actions", "unknown option", "no configuration file"],
)
def test_a_wrong_call_is_explained(
    setup: Setup, instance: Path, options: tuple[str, ...], status: int, says: bytes
) -> None:
    """Each wrong call has its exit code and a sentence, and changes nothing."""
    configure(instance, PLAIN)
    before = files(instance)
    done = setup(*options)
    assert done.returncode == status
    assert says in done.stderr
    assert b"Traceback" not in done.stderr
    assert files(instance) == before


def test_an_account_that_does_not_exist_is_named_before_anything_changes(
    setup: Setup, instance: Path, tmp_path: Path
) -> None:
    """Without the services' accounts nothing is attached: 78, the names and what to run."""
    configure(instance, PLAIN)
    config = tmp_path / "milterapp.yaml"
    config.write_text("accounts:\n  pipe: nosuch-pipe\n")
    before = files(instance)
    done = setup("--apply", "--config", str(config))
    assert (done.returncode, b"nosuch-pipe" in done.stderr, b"packaging/accounts" in done.stderr) == (78, True, True)
    assert files(instance) == before


def test_without_postfix(setup: Setup, instance: Path) -> None:
    """Where Postfix is not installed setup says so, 69."""
    configure(instance, PLAIN)
    hidden = 'mount --bind /dev/null "$(command -v postconf)" && exec "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", hidden, "sh", PYTHON, "-I", "-m", "milterapp", "setup", "--print"],
        capture_output=True,
        check=False,
    )
    assert (done.returncode, b"no Postfix here" in done.stderr) == (69, True)


def test_only_root_changes_the_configuration(site: Site) -> None:
    """Anybody may look; --apply and --undo by another user end with 77."""
    assert site.milterapp("setup", "--print", user="alice").returncode == 0
    for option in ("--apply", "--undo"):
        assert site.milterapp("setup", option, user="alice").returncode == 77


def test_undo_keeps_what_queued_mail_still_needs(site: Site) -> None:
    """With handed-back mail in the queue milterapp-keep stays; delivered, a second undo finishes. No mail is lost."""
    site.postconf(defer_transports="milterapp-keep")
    site.postfix("reload")
    site.send(message("waiting"))
    site.wait(lambda: any(one.relay == "none" for one in site.fates()), "the hand-back to wait", 30)
    try:
        first = site.milterapp("setup", "--undo", check=True)
        assert b"1 queued messages need" in first.stdout
        services = site.run("postconf", "-M")
        assert "milterapp-keep" in services
        assert "milterapp-hand-back" not in services
        assert "mailbox_transport" not in site.run("postconf", "-n")
        site.run("postconf", "-X", "defer_transports")
        site.postfix("reload")
        site.settle()
        assert len(site.inbox("alice")) == 1
        assert site.milterapp("setup", "--undo", check=True).stdout == b"taken out\n"
        assert "milterapp" not in site.run("postconf", "-M") + site.run("postconf", "-n")
        site.postfix("reload")  # and waits for local(8) that would look for milterapp's transport without end
        site.send(message("without milterapp"))
        site.settle()
        assert len(site.inbox("alice")) == 2
    finally:
        site.run("postconf", "-X", "defer_transports")
        site.attach()
        site.postfix("reload")  # and waits for the servers without milterapp to be gone: the next mail is not theirs
