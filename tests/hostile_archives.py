"""Archives that lie: made from code, one fault each, around the two real members of a tiny release."""

import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence

Member = tuple[tarfile.TarInfo, bytes]


def member(
    name: str,
    content: bytes = b"",
    kind: bytes = tarfile.REGTYPE,
    target: str = "",
    pax: Mapping[str, str] | None = None,
) -> Member:
    """A member with what pax says about it beside its header."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size, info.pax_headers = kind, target, len(content), dict(pax or {})
    return info, content


def tar(*members: Member, format: int = tarfile.PAX_FORMAT) -> bytes:
    """An archive of the members in this order, not yet compressed."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def packed(*members: Member, format: int = tarfile.PAX_FORMAT) -> bytes:
    return gzip.compress(tar(*members, format=format), compresslevel=1, mtime=0)


def raw_header(name: bytes, size: int = 0, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header whose name and size nobody checked: any bytes, any number that 11 octal digits or 11 bytes hold."""
    block = bytearray(512)
    block[: len(name)] = name[:100]
    block[100:124] = b"0000644\0" + b"0000000\0" * 2
    octal = 0 <= size < 8**11
    block[124:136] = b"%011o\0" % size if octal else (b"\x80" if size >= 0 else b"\xff") + (size % 256**11).to_bytes(11)
    block[136:148] = b"00000000000\0"
    block[156:157], block[257:265] = kind, b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def raw_member(name: bytes, content: bytes, kind: bytes = tarfile.REGTYPE, size: int | None = None) -> bytes:
    header = raw_header(name, len(content) if size is None else size, kind)
    return header + content + bytes(-len(content) % 512)


def pax_record(key: str, value: str) -> bytes:
    body = f" {key}={value}\n".encode("utf-8", "surrogateescape")
    length = len(body)
    while length != len(body) + len(str(length)):
        length = len(body) + len(str(length))
    return str(length).encode() + body


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


# Names that leave a folder, or that two systems read differently.
UNSAFE_NAMES: Sequence[bytes] = (
    *(b"../model.onnx", b"../../etc/cron.d/x", b"a/../../b", b"..", b"a/..", b"./../x", b"./.."),
    *(b"/etc/passwd", b"/model.onnx", b"//model.onnx"),
    *(b"C:\\x", b"C:/x", b"c:model.onnx", b"a\\b", b"..\\model.onnx", b"\\\\server\\share"),
    *(b"a//b", b".//model.onnx", b"a/./b", b"././model.onnx", b"a/."),
    *(b"x\ny", b"x\x1by", b"x\ty", b"\xff\xfe", b"model\xc3.onnx"),
)

# Names that only look like a member's: with them alone, the member is missing.
LOOK_ALIKES: Sequence[str] = (
    *("Model.onnx", "MODEL.ONNX", "model.onnx ", " model.onnx", "model.onnx.", "model.ONNX", "models/model.onnx"),
    *("mоdel.onnx", "model․onnx", "model.onnx\u200b", "ｍodel.onnx", "mo\u0308del.onnx", "mödel.onnx"),
    *("model.onnx:stream", "model.onnx%00", "x" * 1000, "a/" * 400 + "model.onnx"),
)


_NO_FILES = {
    **{"a symbolic link": tarfile.SYMTYPE, "a hard link": tarfile.LNKTYPE, "a fifo": tarfile.FIFOTYPE},
    **{"a character device": tarfile.CHRTYPE, "a block device": tarfile.BLKTYPE, "a folder": tarfile.DIRTYPE},
    **{"a type that nobody knows": b"Z", "a volume": b"M"},
}


def damaged(good: dict[str, bytes]) -> dict[str, Callable[[], bytes]]:
    """By name, archives that every reader has to refuse."""
    onnx, described = good["model.onnx"], good["model.json"]
    both = [member("model.json", described), member("model.onnx", onnx)]
    plain = tar(*both)
    end = bytes(1024)
    first = raw_member(b"model.json", described)

    def as_the_model(kind: bytes) -> Callable[[], bytes]:
        return lambda: packed(both[0], member("model.onnx", b"", kind, "/etc/passwd"))

    def after(*parts: bytes) -> Callable[[], bytes]:
        return lambda: gzip.compress(b"".join((*parts, end)), compresslevel=1)

    return {
        "empty": lambda: b"",
        "text": lambda: b"no archive",
        "gzip of nothing": lambda: gzip.compress(b""),
        "gzip of junk": lambda: gzip.compress(b"no archive" * 1000),
        "a tar of nothing": lambda: gzip.compress(bytes(20 * 512)),
        "gzip of gzip": lambda: gzip.compress(gzip.compress(plain)),
        "a tar that is not compressed": lambda: plain,
        "a tar in a tar": lambda: packed(member("model.tar", plain)),
        "zip": lambda: zipped(good),
        "gzip of zip": lambda: gzip.compress(zipped(good)),
        "xz": lambda: lzma.compress(plain, preset=0),
        "only the description": lambda: packed(both[0]),
        "only the model": lambda: packed(both[1]),
        "the same member twice": lambda: packed(*both, member("model.onnx", onnx)),
        "the same member twice, once with ./": lambda: packed(*both, member("./model.onnx", onnx)),
        "the same member twice, once by a long name": after(
            first,
            raw_member(b"model.onnx", onnx),
            raw_member(b"././@LongLink", b"model.onnx\0", tarfile.GNUTYPE_LONGNAME),
            raw_member(b"x", b""),
        ),
        **{f"{what} for the model": as_the_model(kind) for what, kind in _NO_FILES.items()},
        "a sparse model": after(first, raw_member(b"model.onnx", b"", tarfile.GNUTYPE_SPARSE, 512)),
        "a sparse model under pax": lambda: packed(
            both[0], member("model.onnx", b"", pax={"GNU.sparse.map": "0,1", "GNU.sparse.size": str(2**40)})
        ),
        "a sparse name under pax": lambda: packed(
            both[0], member("GNUSparseFile.0/x", onnx, pax={"GNU.sparse.name": "model.onnx"})
        ),
        "a pax size beyond the archive": after(
            first, raw_member(b"x", pax_record("size", str(len(onnx) + 4096)), b"x"), raw_member(b"model.onnx", onnx)
        ),
        "a pax size below zero": after(
            first, raw_member(b"x", pax_record("size", "-512"), b"x"), raw_member(b"model.onnx", onnx)
        ),
        "a pax size of a thousand digits": after(
            first, raw_member(b"x", pax_record("size", "9" * 1000), b"x"), raw_member(b"model.onnx", onnx)
        ),
        "a pax size for all members": after(
            raw_member(b"g", pax_record("size", "1"), b"g"), first, raw_member(b"model.onnx", onnx)
        ),
        "a pax name for all members": after(
            raw_member(b"g", pax_record("path", "model.onnx"), b"g"), first, raw_member(b"y", onnx)
        ),
        "two pax names for one member": after(
            raw_member(b"x", pax_record("path", "model.json"), b"x"),
            raw_member(b"x", pax_record("path", "model.onnx"), b"x"),
            raw_member(b"y", onnx),
        ),
        "a pax record of no length": after(
            first, raw_member(b"x", b"0 path=x\n", b"x"), raw_member(b"model.onnx", onnx)
        ),
        "a pax record past its header": after(
            first, raw_member(b"x", b"999 path=x\n", b"x"), raw_member(b"model.onnx", onnx)
        ),
        "a pax header of gigabytes": after(raw_header(b"x", 3 * 2**30, b"x"), bytes(2**20)),
        "a long name of gigabytes": after(raw_header(b"L", 3 * 2**30, tarfile.GNUTYPE_LONGNAME), bytes(2**20)),
        "an extended header of nothing": after(*[raw_member(b"model.json", b"{}")], raw_member(b"x", b"", b"x")),
        "a size below zero": after(first, raw_header(b"model.onnx", -(2**40))),
        "a size of another member below zero": after(first, raw_header(b"x", -1024), raw_member(b"model.onnx", onnx)),
        "a size beyond every limit": after(first, raw_header(b"model.onnx", 2**80)),
        "a model of 3 GiB": after(first, raw_header(b"model.onnx", 3 * 2**30)),
        "a description of 9 MiB": after(raw_header(b"model.json", 9 * 2**20), bytes(9 * 2**20)),
        "padding of 5 GiB": after(first, raw_member(b"model.onnx", onnx), raw_header(b"padding", 5 * 2**30)),
        "a model that ends early": lambda: gzip.compress(
            first + raw_header(b"model.onnx", len(onnx)) + onnx[: len(onnx) // 2]
        ),
        "a wrong checksum of a header": lambda: gzip.compress(
            plain.replace(b"model.onnx", b"model.onny", 1), compresslevel=1
        ),
        "no end": lambda: gzip.compress(first + raw_member(b"model.onnx", onnx)),
        "a second tar behind the first": lambda: gzip.compress(plain + tar(member("model.onnx", b"other"))),
        "a script behind the tar": lambda: gzip.compress(plain + b"#!/bin/sh\n"),
        "a script behind the gzip": lambda: gzip.compress(plain) + b"#!/bin/sh\n",
        "another gzip behind the gzip": lambda: gzip.compress(plain) + gzip.compress(b"#!/bin/sh\n"),
        "cut before the end of the gzip": lambda: gzip.compress(plain)[:-3],
        "a wrong checksum of the gzip": lambda: gzip.compress(plain)[:-8] + bytes(8),
    }
