"""The client that pipe(8) runs for each message and recipient: take the message whole, hand it to the monitor, answer.

Must never: import anything but the standard library; parse the message or an option after the first argument; let a
fault of ours look like anything but a temporary failure, or a message that pipe(8) did not finish like a whole one.

Run as `/usr/bin/python3 -I -S pipe.py [--socket=PATH] SENDER RECIPIENT ORIGINAL QUEUE_ID CLIENT`, where `pipe` loads
this; with --virtual=PATH in its place the recipient is no account of this host. Every import is paid for each message,
so it uses the interpreter's built-in modules, below `os` and `socket` (which alone costs 10 ms). `client.c` is the same
for those who have a C compiler, to the letter: a change here is one there.
Exit statuses: 0 delivered, 69 rejected (`5.7.1 text`), 75 try again (`4.3.0 text`). Source: pipe(8), pipe_command.c.
"""

import posix
import sys
import time

end = posix._exit  # noqa: SLF001 - what os._exit is

try:
    import _signal  # type: ignore[import-not-found]
    import _socket
    import fcntl
    import select
except BaseException:  # noqa: BLE001 - a traceback's status 1 would bounce the mail
    posix.write(1, b"4.3.5 milterapp-pipe: this Python lacks a module of the standard library\n")
    end(75)

__all__ = ["Unfinished", "deliver", "finished", "main"]

SOCKET = "/run/milterapp/monitor/socket"
DEADLINE = 600  # seconds for all of it; milterapp_time_limit must lie well above
TAGS = ("sender", "recipient", "original", "queue_id", "client")
_OPTIONS = (b"--socket=", b"--virtual=")
STATUSES = {b"ok": 0, b"reject": 69, b"defer": 75}
_CHUNK = 64 * 1024  # what a pipe holds
_LIMIT = 64 * 1024  # bytes of a datagram, as in `wire`
_LINE = 1000  # bytes of the one line; pipe(8) reads 4096
_EXITING = 4  # PF_EXITING of the kernel's include/linux/sched.h, in field 9 of proc_pid_stat(5)
_FLAGS = 6  # that field, counted from the one after the command name
_HIDDEN = 0.05  # seconds; what a process takes to die, where /proc does not tell (hidepid)
_NONSENSE = "the monitor's answer makes no sense"
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class Unfinished(Exception):  # noqa: N818 - it says what is the matter
    """The message may not be whole, or nobody waits for our answer."""


def flags_of(pid: int) -> int | None:
    """Return the kernel's flags of a process, None where /proc does not show it."""
    try:
        fd = posix.open(f"/proc/{pid}/stat", posix.O_RDONLY | posix.O_CLOEXEC)
    except OSError:
        return None
    try:
        return int(posix.read(fd, 4096).rpartition(b")")[2].split()[_FLAGS])
    except (OSError, ValueError, IndexError):
        return None
    finally:
        posix.close(fd)


def finished(parent: int, output: int = 1, *, pause: float = _HIDDEN) -> None:
    """Raise Unfinished unless the parent lives, is not exiting, and still reads our output.

    When pipe(8) dies, its end of our standard input is closed before the kernel gives us another parent: getppid()
    alone takes a truncated message for a whole one. The flag closes that gap; where /proc hides the process, a pause
    does, long enough for a dying process to be gone.
    """
    flags = flags_of(parent)
    if flags is None:
        time.sleep(pause)
    poll = select.poll()
    poll.register(output, 0)  # POLLERR alone: the reader of our output has closed it
    if (
        parent <= 1
        or (flags is not None and flags & _EXITING)
        or any(event & select.POLLERR for _, event in poll.poll(0))
        or posix.getppid() != parent
    ):
        raise Unfinished("pipe(8) did not finish the message")


def receive(source: int) -> int:
    """Return a memfd with everything that comes until end of file. Raises OSError."""
    message = posix.memfd_create("message", posix.MFD_CLOEXEC | posix.MFD_ALLOW_SEALING)
    while chunk := posix.read(source, _CHUNK):
        while chunk:
            chunk = chunk[posix.write(message, chunk) :]
    return message


def encode(values: list[bytes], kind: bytes = b"DELIVER") -> bytes:
    """Return the datagram DELIVER or VIRTUAL, as in `wire`. Raises ValueError where it is too long."""
    out = kind + b"\n"
    for tag, value in zip(TAGS, values, strict=True):
        out += b"%s:%d:%s\n" % (tag.encode(), len(value), value)
    if len(out) > _LIMIT:
        raise ValueError(f"an envelope of {len(out)} bytes, more than {_LIMIT}")
    return out


def decode(data: bytes) -> tuple[int, bytes]:
    """Return exit status and text of the datagram ANSWER. Raises ValueError where it is none."""
    kind, _, rest = data.partition(b"\n")
    fields = {}
    while rest:
        tag, _, rest = rest.partition(b":")
        digits, _, rest = rest.partition(b":")
        size = int(digits) if digits.isdigit() and len(digits) <= 6 else _LIMIT
        if rest[size : size + 1] != b"\n":
            raise ValueError(_NONSENSE)
        fields[tag], rest = rest[:size], rest[size + 1 :]
    status = STATUSES.get(fields.get(b"status", b""))
    text = fields.get(b"text", b"")
    if kind != b"ANSWER" or status is None or (status == 69 and not text.startswith(b"5.")):
        raise ValueError(_NONSENSE)
    if status == 75 and not text.startswith(b"4."):
        text = b"4.3.0 " + text
    return status, text if status else b""


def deliver(arguments: list[bytes], source: int = 0) -> tuple[int, bytes]:
    """Hand one message to the monitor and return exit status and line of output.

    arguments: as in the module's description. Raises OSError, ValueError or Unfinished: all of them mean 75.
    """
    parent = posix.getppid()
    path, kind = SOCKET.encode(), b"DELIVER"
    if len(arguments) == len(TAGS) + 1 and arguments[0].startswith(_OPTIONS):
        option, _, path = arguments.pop(0).partition(b"=")
        kind = b"VIRTUAL" if option == b"--virtual" else kind
    # An option and four more: one after it was lost. A sender that looks like an option holds an `@`.
    first = arguments[0] if arguments else b""
    if len(arguments) != len(TAGS) or (first.startswith(_OPTIONS) and b"=/" in first and b"@" not in first):
        raise ValueError(f"{len(arguments)} arguments, expected {len(TAGS)}: see argv= in master.cf")
    message = receive(source)
    finished(parent)
    if not posix.fstat(message).st_size:
        raise Unfinished("no message on standard input")
    fcntl.fcntl(message, fcntl.F_ADD_SEALS, _SEALS)
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    try:
        connection.connect(path)
    except OSError as error:
        raise Unfinished(f"the monitor does not answer: {error.strerror or error}") from error
    datagram = encode(arguments, kind)
    finished(parent)
    rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, message.to_bytes(4, sys.byteorder))]
    connection.sendmsg([datagram], rights, _socket.MSG_NOSIGNAL)
    answer = connection.recv(_LIMIT)
    if not answer:
        raise Unfinished("the monitor gave up this message")
    return decode(answer)


def say(line: bytes) -> None:
    """Print one line, without anything that could end it or be more than pipe(8) reads."""
    if line:
        clean = bytes(byte if byte >= 32 and byte != 127 else 63 for byte in line[:_LINE])
        try:
            posix.write(1, clean + b"\n")
        except OSError:
            pass  # the exit status says it too


def _stopped(number: int, _frame: object) -> None:
    say(b"4.3.0 milterapp-pipe: " + (b"no answer in time" if number == _signal.SIGALRM else b"stopped"))
    end(75)


def main() -> None:
    """Deliver, and end the process; whatever happens, nothing but 0 and 69 is not 75."""
    status, line = 75, b"4.3.0 milterapp-pipe: a fault of ours"
    try:
        for number in (_signal.SIGALRM, _signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP):
            _signal.signal(number, _stopped)
        _signal.alarm(DEADLINE)
        encoding = sys.getfilesystemencoding()
        status, line = deliver([argument.encode(encoding, "surrogateescape") for argument in sys.argv[1:]])
    except BaseException as error:  # noqa: BLE001 - a traceback's status 1 would bounce the mail
        who = "" if isinstance(error, Unfinished) else "milterapp-pipe: "
        line = f"4.3.0 {who}{str(error) or type(error).__name__}".encode("ascii", "backslashreplace")
    say(line)
    end(status)
