"""What an LMTP client says, as values: commands, paths with their parameters, XFORWARD, and the data's end.

Must never: do I/O, or take anything but CRLF, dot, CRLF for the end of a message (a bare LF must not end one).
Sources: RFC 2033, RFC 5321 sections 4.1.1 and 4.5.2, RFC 3461 sections 4 and 4.2 (xtext, ORCPT), Postfix's
XFORWARD_README.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["SyntaxFault", "Undotted", "attributes", "command", "original", "path", "xtext"]

_PATH = re.compile(r'<(?:@[^:<>" ]*:)?((?:"(?:[^"\\]|\\.)*"|[^<>"\\ ])*)>(?: +(.*))?', re.DOTALL)
_PARAMETER = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]*)(?:=([^ =]+(?:=[^ ]*)?))?")
_XTEXT = re.compile(r"\+([0-9A-F]{2})")
_END = b"\r\n.\r\n"
_UNKNOWN = "[UNAVAILABLE]"  # what XFORWARD says for it


class SyntaxFault(ValueError):  # noqa: N818 - a fault of the client's, answered and survived
    """A command that cannot be understood; str() is the text of the reply."""


def command(line: bytes) -> tuple[str, str]:
    """Return the verb in capitals and what follows it; bytes that are not UTF-8 as surrogate escapes."""
    verb, _, rest = line.decode("utf-8", "surrogateescape").partition(" ")
    return verb.upper(), rest.strip(" ")


def path(argument: str, word: str) -> tuple[str, Mapping[str, str]]:
    """Return the address (without a source route) and the parameters, names in capitals, of MAIL or RCPT.

    word: FROM or TO. Raises SyntaxFault.
    """
    said, colon, rest = argument.partition(":")
    found = _PATH.fullmatch(rest.strip(" "))
    if not colon or said.strip().upper() != word or found is None or "\0" in argument or "\r" in argument:
        raise SyntaxFault(f"expected {word}:<address>")
    parameters: dict[str, str] = {}
    for one in (found[2] or "").split():
        parameter = _PARAMETER.fullmatch(one)
        if parameter is None or parameter[1].upper() in parameters:
            raise SyntaxFault("a parameter that cannot be understood")
        parameters[parameter[1].upper()] = parameter[2] or ""
    return found[1], parameters


def xtext(value: str) -> str:
    """Return what xtext stands for; a `+` without two hexadecimal digits stays one."""
    if "+" not in value and value.isascii():
        return value
    data = _XTEXT.sub(lambda match: chr(int(match[1], 16)), value)
    if all(ord(char) < 256 for char in data):
        return data.encode("latin-1").decode("utf-8", "surrogateescape")
    return data


def original(parameter: str) -> str:
    """Return the address of an ORCPT parameter, `type;xtext`; "" where there is none."""
    return xtext(parameter.partition(";")[2])


def attributes(argument: str) -> Mapping[str, str]:
    """Return the attributes of an XFORWARD command, names in capitals, "" for what Postfix does not know.

    Raises SyntaxFault.
    """
    found: dict[str, str] = {}
    for one in argument.split():
        name, equals, value = one.partition("=")
        if not equals:
            raise SyntaxFault("expected NAME=value")
        found[name.upper()] = "" if value == _UNKNOWN else xtext(value)
    return found


class Undotted:
    """The data of a message out of what follows DATA, as it comes: dots undone, CRLF as LF."""

    def __init__(self) -> None:
        self._held = b"\r\n"  # as if a line had ended: the first may be the dot
        self._first = True

    def feed(self, data: bytes) -> tuple[bytes, bytes | None]:
        """Return the bytes of the message that are certain by now, and what came behind its end; None before that."""
        data = self._held + data
        at = data.find(_END)
        rest = None if at < 0 else data[at + len(_END) :]
        if rest is None:
            keep = next(size for size in range(len(_END) - 1, -1, -1) if data.endswith(_END[:size]))
            end = len(data) - keep
            data, self._held = data[:end], data[end:]
        else:
            data = data[: at + 2]
        data = data.replace(b"\r\n.", b"\r\n").replace(b"\r\n", b"\n")
        if self._first and data:
            data, self._first = data[1:], False
        return data, rest
