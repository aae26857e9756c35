"""Bytes to text in the charsets that mail names, well or badly.

Must never: raise, give a surrogate, or look a name from a message up in the codec registry (it caches what it fails
to find, imports modules by name, and holds codecs that are no charsets or take quadratic time).
"""

from __future__ import annotations

import codecs
import functools
from encodings.aliases import aliases

__all__ = ["cost", "decode", "guess", "known", "writable"]

# What mail says, and what its readers take it for: the superset that the sender really used (WHATWG Encoding).
_WILD = {
    "": "",
    "ansi": "cp1252",
    "ascii": "",
    "us_ascii": "",
    "usascii": "",
    "default": "",
    "unknown": "",
    "unknown_8bit": "",
    "x_unknown": "",
    "8bit": "",
    "binary": "",
    "none": "",
    "utf": "utf_8",
    "utf8mb4": "utf_8",
    "utf_8_sig": "utf_8",
    "unicode": "utf_8",
    "unicode_1_1_utf_7": "utf_7",
    "unicode_1_1_utf_8": "utf_8",
    "x_unicode_2_0_utf_8": "utf_8",
    "iso8859_1": "cp1252",
    "latin_1": "cp1252",
    "latin1": "cp1252",
    "iso_latin_1": "cp1252",
    "iso_8859_8_i": "iso8859_8",
    "iso_8859_8_e": "iso8859_8",
    "iso_8859_6_i": "iso8859_6",
    "iso_8859_6_e": "iso8859_6",
    "iso8859_9": "cp1254",
    "iso8859_11": "cp874",
    "tis_620": "cp874",
    "windows_874": "cp874",
    "x_windows_949": "cp949",
    "windows_949": "cp949",
    "ks_c_5601_1987": "cp949",
    "ksc5601": "cp949",
    "euc_kr": "cp949",
    "euckr": "cp949",
    "gb2312": "gb18030",
    "gb_2312_80": "gb18030",
    "euc_cn": "gb18030",
    "gbk": "gb18030",
    "x_gbk": "gb18030",
    "cp936": "gb18030",
    "hz_gb_2312": "hz",
    "big5": "big5hkscs",
    "x_x_big5": "big5hkscs",
    "big5_eten": "big5hkscs",
    "shift_jis": "cp932",
    "x_sjis": "cp932",
    "sjis": "cp932",
    "ms_kanji": "cp932",
    "windows_31j": "cp932",
    "iso2022_jp": "iso2022_jp_ext",
    "cp50220": "iso2022_jp_ext",
    "cp50221": "iso2022_jp_ext",
    "x_euc_jp": "euc_jp",
    "eucjp_ms": "euc_jp",
    "koi8": "koi8_r",
    "koi": "koi8_r",
    "koi8_ru": "koi8_u",
    "x_mac_roman": "mac_roman",
    "x_mac_cyrillic": "mac_cyrillic",
    "x_mac_ce": "mac_latin2",
    "macintosh": "mac_roman",
    "visual": "iso8859_8",
}
_CODECS = """
    big5 big5hkscs cp037 cp1006 cp1026 cp1125 cp1140 cp1250 cp1251 cp1252 cp1253 cp1254 cp1255 cp1256 cp1257
    cp1258 cp273 cp424 cp437 cp500 cp720 cp737 cp775 cp850 cp852 cp855 cp856 cp857 cp858 cp860 cp861 cp862
    cp863 cp864 cp865 cp866 cp869 cp874 cp875 cp932 cp949 cp950 euc_jis_2004 euc_jisx0213 euc_jp gb18030
    hp_roman8 hz iso2022_jp iso2022_jp_1 iso2022_jp_2 iso2022_jp_2004 iso2022_jp_3 iso2022_jp_ext iso2022_kr
    iso8859_10 iso8859_13 iso8859_14 iso8859_15 iso8859_16 iso8859_2 iso8859_3 iso8859_4 iso8859_5 iso8859_6
    iso8859_7 iso8859_8 johab koi8_r koi8_t koi8_u kz1048 mac_arabic mac_croatian mac_cyrillic mac_farsi
    mac_greek mac_iceland mac_latin2 mac_roman mac_romanian mac_turkish palmos ptcp154 shift_jis_2004
    shift_jisx0213 utf_16 utf_16_be utf_16_le utf_32 utf_32_be utf_32_le utf_7 utf_8
"""
_MULTIBYTE_CODECS = """
    big5 big5hkscs cp932 cp949 cp950 euc_jis_2004 euc_jisx0213 euc_jp euc_kr gb18030 gb2312 gbk johab shift_jis
    shift_jis_2004 shift_jisx0213 utf_8
"""


def _table() -> dict[str, str]:
    usable = frozenset(_CODECS.split())
    table = {codec: codec for codec in usable}
    for alias, codec in aliases.items():
        taken = _WILD.get(codec, codec)
        if taken == "" or taken in usable:
            table[alias] = taken
    return table | _WILD


_TABLE = _table()
# Codecs whose ASCII stands for other characters: how many bytes a character of the text then takes.
_SHIFTING = {"utf_7": 4, "iso2022_jp_2004": 4, "iso2022_jp_3": 4} | dict.fromkeys(
    ("iso2022_jp", "iso2022_jp_1", "iso2022_jp_2", "iso2022_jp_ext", "iso2022_kr", "hz"), 2
)
_SHIFTING |= dict.fromkeys(("utf_16", "utf_16_be", "utf_16_le", "utf_32", "utf_32_be", "utf_32_le"), 4)
_MULTIBYTE = frozenset(_MULTIBYTE_CODECS.split())
_SLOW = {"utf_7": 4, "utf_32": 4, "utf_32_be": 4, "utf_32_le": 4}  # against the others, in time
_CHUNK = 1 << 16
_ASCII = bytes(range(0x80))
_BELOW_F0 = bytes(range(0xF0))
# What a superset of the table stands for where the name is not the superset's own.
_NARROW = {
    "cp1252": "latin_1",
    "cp1254": "iso8859_9",
    "cp874": "tis_620",
    "cp932": "shift_jis",
    "cp949": "euc_kr",
    "gb18030": "gb2312",
    "big5hkscs": "big5",
    "iso2022_jp_ext": "iso2022_jp",
}
_PUNCTUATION = str.maketrans(dict.fromkeys("-. :/()", "_"))
_LONGEST = max(map(len, _TABLE)) + 8


def known(charset: str) -> str | None:
    """Return the name of the codec for a charset as mail wrote it, "" for none in particular, None for unknown."""
    if charset in _TABLE:
        return _TABLE[charset]
    if len(charset) > _LONGEST:
        return None
    name = charset.strip(" \t'\"").lower().translate(_PUNCTUATION)
    for form in (name, name.removeprefix("x_"), name.removeprefix("cs"), name.replace("_", ""), _windows(name)):
        if form in _TABLE:
            return _TABLE[form]
    return None


def _windows(name: str) -> str:
    """Return `cp1251` for `win_1251`, `windows1251`, `cp_1251`, `ms1251`, `ibm_850`."""
    digits = name.lstrip("abcdefghijklmnopqrstuvwxyz_")
    return "cp" + digits if name.startswith(("win", "cp", "ms", "ibm", "x_cp", "x_win", "dos", "oem")) else name


def writable(charset: str) -> str:
    """Return the codec to add text in to a text of that charset, "" where none can: what is read as its superset is
    written as what the name says, so that every reader can read it.
    """
    codec = known(charset)
    if codec is None or (codec in _SHIFTING and codec != "iso2022_jp_ext"):
        return ""
    if not codec:
        return "ascii"
    own = any(word in charset.lower() for word in ("windows", "cp", "18030", "31j"))
    codec = codec if own else _NARROW.get(codec, codec)
    return codec if codec == "iso2022_jp" or _ascii_width(codec) == 1 else ""


def guess(data: bytes | memoryview) -> str:
    """Return text nobody labelled: UTF-8 where it is valid, else Windows-1252, which has a character for nearly all."""
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError:
        return codecs.charmap_decode(data, "strict", _single_byte_table("cp1252"))[0]


def decode(data: bytes | memoryview, charset: str) -> tuple[str, str]:
    """Return (text, fault): the text in that charset, and what was wrong with it, "" where nothing was.

    What the charset does not hold becomes U+FFFD. A charset of no meaning is guessed.
    """
    codec = known(charset)
    if not codec:
        return guess(data), "" if codec is not None else f"an unknown charset {charset[:40]!a}"
    table = _single_byte_table(codec)
    if table:
        text = codecs.charmap_decode(data, "strict", table)[0]
        return text, f"bytes that are no {_written(codec)}" if "\ufffd" in text else ""
    try:
        return _clean(str(data, codec), codec), ""
    except UnicodeDecodeError:
        return _clean(str(data, codec, "replace"), codec), f"bytes that are no {_written(codec)}"


def _written(codec: str) -> str:
    return codec.replace("_", "-")


@functools.cache
def _single_byte_table(codec: str) -> str:
    """Return the character of each byte, U+FFFD where there is none; "" where characters take several bytes.

    The codecs' own way with such bytes costs 160 ns for each of them.
    """
    if codec in _SHIFTING or codec in _MULTIBYTE:
        return ""
    return bytes(range(256)).decode(codec, "replace")


def cost(data: bytes | memoryview, charset: str) -> int:
    """Return how many bytes of memory a text can take once it is decoded (PEP 393): 1, 2 or 4 a character.

    Slow codecs count as more.
    """
    codec = known(charset) or "utf_8"
    if codec in _SHIFTING:
        return _SHIFTING[codec] * len(data) * _SLOW.get(codec, 1)
    width = _ascii_width(codec)
    for at in range(0, len(data), _CHUNK):
        chunk = bytes(data[at : at + _CHUNK])
        if chunk.isascii():
            continue
        width = 2
        if codec in ("utf_8", "gb18030") and chunk.translate(None, _BELOW_F0 if codec == "utf_8" else _ASCII):
            return 4 * len(data)
    return width * len(data)


@functools.cache
def _ascii_width(codec: str) -> int:
    """Return 2 where ASCII bytes stand for other characters (EBCDIC, and a few for the backslash), else 1."""
    return 1 if bytes(range(128)).decode(codec, "replace").isascii() else 2


def _clean(text: str, codec: str) -> str:
    if codec == "utf_7":  # the one codec of the table that lets a lone surrogate through
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text.removeprefix("\ufeff")
