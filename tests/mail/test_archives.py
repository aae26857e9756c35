"""The names in an archive are found without unpacking it, and what keeps them from being found has a name."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import tarfile
import zipfile
import zlib

import py7zr
import pytest
from hypothesis import given
from hypothesis import strategies as st

from milterapp.mail.archives import Listing, Spent, listing
from milterapp.mail.limits import LimitHit
from milterapp.mail.message import Mail

NAMES = ("a.txt", "dir/ü.exe", "x" * 150 + ".js")


def zipped(names: tuple[str, ...] = NAMES) -> bytes:
    """Return a zip archive of small files."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in names:
            archive.writestr(name, "content of " + name)
    return out.getvalue()


def tarred(form: int, names: tuple[str, ...] = NAMES) -> bytes:
    """Return a tar archive of files some of which are longer than a block."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = 700 * number
            archive.addfile(info, io.BytesIO(bytes(info.size)))
    return out.getvalue()


def seven_zipped(names: tuple[str, ...] = NAMES, password: str | None = None, *, all_of_it: bool = False) -> bytes:
    """Return a 7z archive of small files."""
    out = io.BytesIO()
    with py7zr.SevenZipFile(out, "w", password=password, header_encryption=all_of_it) as archive:
        for name in names:
            archive.writestr("content of " + name, name)
    return out.getvalue()


def holding(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return a zip archive of these."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def holding_in_tar(members: dict[str, bytes]) -> bytes:
    """Return a tar archive of these."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def with_directory(header: bytes) -> bytes:
    """Return a 7z archive that has this directory and nothing else."""
    start = struct.pack("<QQL", 0, len(header), zlib.crc32(header))
    return b"7z\xbc\xaf\x27\x1c\0\4" + struct.pack("<L", zlib.crc32(start)) + start + header


SMALL = ("a.txt", "b.exe")
ZIP = zipped()
SEVEN_ZIP = seven_zipped()
TAR = tarred(tarfile.PAX_FORMAT)


@pytest.mark.parametrize(
    ("content", "name", "names"),
    [
        pytest.param(ZIP, "a.zip", NAMES, id="zip"),
        pytest.param(b"MZ stub" + ZIP, "a.exe", (), id="zip-behind-a-stub-is-no-zip"),
        pytest.param(zipped(()), "", (), id="zip-empty"),
        pytest.param(ZIP[:-2] + b"\5\0hello", "", NAMES, id="zip-comment"),
        pytest.param(TAR, "a.tar", NAMES, id="tar-pax"),
        pytest.param(tarred(tarfile.GNU_FORMAT), "", NAMES, id="tar-gnu"),
        pytest.param(tarred(tarfile.USTAR_FORMAT, NAMES[:2]), "", NAMES[:2], id="tar-ustar"),
        pytest.param(gzip.compress(TAR), "", NAMES, id="tar-gz"),
        pytest.param(bz2.compress(TAR), "", NAMES, id="tar-bz2"),
        pytest.param(lzma.compress(TAR), "", NAMES, id="tar-xz"),
        pytest.param(gzip.compress(b"MZ"), "evil.exe.gz", ("evil.exe",), id="gz"),
        pytest.param(bz2.compress(b"MZ"), "evil.exe.bz2", ("evil.exe",), id="bz2"),
        pytest.param(lzma.compress(b"MZ"), "evil.exe.XZ", ("evil.exe",), id="xz"),
        pytest.param(SEVEN_ZIP, "a.7z", NAMES, id="7z"),
        pytest.param(seven_zipped(()), "", (), id="7z-empty"),
        pytest.param(b"%PDF", "a.zip", (), id="something-else"),
        pytest.param(b"", "a.zip", (), id="nothing"),
    ],
)
def test_names(content: bytes, name: str, names: tuple[str, ...]) -> None:
    """Every member's name is there; what only has the extension of an archive is none."""
    assert listing(content, name, Spent()) == Listing(names)


def test_a_gzip_file_names_itself_twice() -> None:
    """The name in a gzip header and the one without its suffix are both readings."""
    out = io.BytesIO()
    with gzip.GzipFile("inner.exe", "wb", fileobj=out) as file:
        file.write(b"MZ")
    assert listing(out.getvalue(), "outer.txt.gz", Spent()).names == ("inner.exe", "outer.txt")


@pytest.mark.parametrize(
    ("content", "faults"),
    [
        pytest.param(ZIP[:-30], ("a damaged archive",), id="zip-cut-off"),
        pytest.param(ZIP[:100], ("a damaged archive",), id="zip-head-only"),
        pytest.param(
            ZIP.replace(b"a.txt", b"a.exe", 1), ("an archive with two names for one member",), id="zip-two-names"
        ),
        pytest.param(
            ZIP.replace(b"PK\1\2\x14\3\x14\0\0\0", b"PK\1\2\x14\3\x14\0\1\0", 1),
            ("an encrypted archive",),
            id="zip-encrypted",
        ),
        pytest.param(SEVEN_ZIP[:-3], ("a damaged archive",), id="7z-cut-off"),
        pytest.param(SEVEN_ZIP[:20], ("a damaged archive",), id="7z-head-only"),
        pytest.param(with_directory(b"rubbish"), ("a damaged archive",), id="7z-rubbish"),
        pytest.param(with_directory(bytes(2 << 20)), ("a damaged archive",), id="7z-directory-too-large"),
        pytest.param(
            with_directory(b"\1\5\xff" + struct.pack("<Q", 1 << 40)), ("a damaged archive",), id="7z-of-2-to-the-40"
        ),
        pytest.param(seven_zipped(password="x"), ("an encrypted archive",), id="7z-encrypted"),
        pytest.param(
            seven_zipped(password="x", all_of_it=True), ("an encrypted archive",), id="7z-directory-encrypted"
        ),
        pytest.param(holding({"a.zip": ZIP[:-30]}), ("a damaged archive",), id="zip-in-zip-damaged"),
        pytest.param(TAR[:700], ("a damaged archive",), id="tar-cut-off"),
        pytest.param(b"\x1f\x8b\x08\0rubbish that is no deflate", ("a damaged archive",), id="gz-damaged"),
        pytest.param(b"BZh9rubbish", ("a damaged archive",), id="bz2-damaged"),
    ],
)
def test_damage(content: bytes, faults: tuple[str, ...]) -> None:
    """A damaged or an encrypted archive is malformed, and gives the names it still can."""
    assert listing(content, "", Spent()).faults == faults


@pytest.mark.parametrize(
    ("content", "inner"),
    [
        pytest.param(holding({"x.zip": zipped(SMALL), "z": b""}), "x.zip", id="zip-in-zip"),
        pytest.param(holding({"x.zip": zipped(SMALL), "z": b""}, zipfile.ZIP_STORED), "x.zip", id="zip-in-zip-stored"),
        pytest.param(holding({"x.7z": seven_zipped(SMALL), "z": b""}), "x.7z", id="7z-in-zip"),
        pytest.param(
            holding({"x.tgz": gzip.compress(tarred(tarfile.PAX_FORMAT, SMALL)), "z": b""}), "x.tgz", id="tgz-in-zip"
        ),
        pytest.param(holding_in_tar({"x.zip": zipped(SMALL), "z": b""}), "x.zip", id="zip-in-tar"),
        pytest.param(
            gzip.compress(holding_in_tar({"y": bytes(400_000), "x.zip": zipped(SMALL), "z": b""})),
            "x.zip",
            id="zip-in-tar-gz",
        ),
    ],
)
def test_an_archive_in_an_archive(content: bytes, inner: str) -> None:
    """Its members are listed below its name, behind those of the outer one."""
    names = tuple(name for name in listing(content, "", Spent()).names if name != "y")
    assert names == (inner, "z", *(f"{inner}/{name}" for name in SMALL))


def test_a_compressed_archive() -> None:
    """A zip that was compressed once more does not hide what it holds."""
    assert listing(gzip.compress(ZIP), "x.zip.gz", Spent()).names == ("x.zip", *(f"x.zip/{name}" for name in NAMES))


def test_archives_are_read_one_level_deep() -> None:
    """A third level is named, not read."""
    found = listing(holding({"a.zip": holding({"b.zip": zipped(SMALL)})}), "", Spent())
    assert found == Listing(("a.zip", "a.zip/b.zip"))


def test_both_names_of_a_member_count() -> None:
    """Some tools trust the directory, some the member: both names are there."""
    assert {"a.txt", "a.exe"} <= set(listing(ZIP.replace(b"a.txt", b"a.exe", 1), "", Spent()).names)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(zipped(tuple(f"{n}" for n in range(10_001))), id="zip"),
        pytest.param(zipped(tuple(f"{n}" for n in range(10_001)))[:-1000], id="zip-cut-off"),
        pytest.param(gzip.compress(TAR[:-1024] + bytes(40 << 20)), id="gzip-bomb"),
        pytest.param(holding({f"{n}.zip": bytes(8 << 20) for n in range(6)}), id="zip-of-bombs"),
    ],
)
def test_an_archive_is_bounded(content: bytes) -> None:
    """More members or bytes than our bound is "could not tell"."""
    with pytest.raises(LimitHit, match=r"more than \d+ (members|bytes)"):
        listing(content, "", Spent())


@given(
    st.sampled_from(
        [
            ZIP,
            SEVEN_ZIP,
            holding({"x.zip": ZIP}),
            holding_in_tar({"x.7z": SEVEN_ZIP}),
            TAR,
            gzip.compress(TAR),
            b"PK\3\4",
            b"BZh9",
        ]
    ),
    st.data(),
)
def test_no_content_raises(content: bytes, data: st.DataObject) -> None:
    """However an archive is cut and changed, reading it raises nothing."""
    at = data.draw(st.integers(0, len(content)))
    changed = content[:at] + data.draw(st.binary(max_size=6)) + content[at + data.draw(st.integers(0, 6)) :]
    for name in listing(changed[: data.draw(st.integers(0, len(changed)))], "x.gz", Spent()).names:
        name.encode()


def test_in_a_message() -> None:
    """Member names stand beside the attachment's own, and faults among the message's."""
    head = b"Content-Type: application/octet-stream; name=a.dat\nContent-Transfer-Encoding: 8bit\n\n"
    (attachment,) = Mail(head + ZIP).attachments
    assert attachment.member_names == NAMES
    assert Mail(head + ZIP).malformed == ()
    assert Mail(head + ZIP[:-30]).malformed == ("a damaged archive",)


@given(st.binary(max_size=60), st.binary(max_size=8))
def test_no_directory_of_a_7z_raises(directory: bytes, packed: bytes) -> None:
    """A directory with the right checksums and anything in it is read or damaged."""
    for start in (b"\1\5", b"\1\4\6", b"\x17\6", b""):
        found = listing(with_directory(start + directory) + packed, "", Spent())
        assert found.faults in ((), ("a damaged archive",), ("an encrypted archive",))


def test_a_size_in_a_tar_is_not_believed() -> None:
    """A member that claims to be larger than the archive ends it."""
    block = bytearray(tarred(tarfile.USTAR_FORMAT, ("a",))[:512])
    block[124:136] = b"\x80" + bytes(3) + struct.pack(">Q", 1 << 62)
    assert listing(bytes(block), "", Spent()).names == ("a",)
    assert zlib.crc32(block)
