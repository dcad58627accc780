"""Bytes of files that may be packed (gzip, bzip2) and may be damaged."""

from __future__ import annotations

import bz2
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

MAX_FILE_BYTES = 64 << 20
"""Of a file that is one document, unpacked: more text than any document is allowed."""
_BLOCK = 1 << 18
_GZIP = b"\x1f\x8b\x08"
_BZIP2 = b"BZh"


class Damaged(ValueError):
    """What a file holds cannot be read. The message is one line."""


@contextmanager
def open_unpacked(path: Path) -> Iterator[ByteStream]:
    """The file's bytes; packed ones are known by their first bytes.

    Raises:
        Damaged: the name says packed, the bytes say not.
    """
    with open(path, "rb") as file:
        start = file.read(3)
        file.seek(0)
        if start == _GZIP:
            yield ByteStream(io.BufferedReader(_Gzip(file), _BLOCK))
        elif start == _BZIP2:
            yield ByteStream(io.BufferedReader(_Bzip2(file), _BLOCK))
        elif path.suffix in (".gz", ".bz2") and start:
            raise Damaged(f"not a {path.suffix} file: it begins with {start!r}")
        else:
            yield ByteStream(file)


def read_whole(path: Path, limit: int = MAX_FILE_BYTES) -> bytes:
    """All bytes of a file that is one document.

    Raises:
        Damaged: empty, damaged, or more than `limit` bytes when unpacked.
    """
    with open_unpacked(path) as stream:
        content = stream.read(limit + 1)
        stream.raise_damage()
    if len(content) > limit:
        raise Damaged(f"more than {size(limit)}, unpacked, in a file that is read whole")
    if not content:
        raise Damaged("the file is empty")
    return content


def unpack(content: bytes, limit: int) -> bytes:
    """Bytes that were packed with gzip or zlib, at most `limit` of them.

    Raises:
        Damaged: they are cut or wrong.
    """
    packed = zlib.decompressobj(47)
    try:
        unpacked = packed.decompress(content, limit)
    except zlib.error as error:
        raise Damaged(f"packed content that is damaged ({str(error).split(': ')[-1]})") from error
    if not packed.eof and len(unpacked) < limit:
        raise Damaged("packed content that is cut off")
    return unpacked


def size(count: int) -> str:
    return f"{count >> 20} MiB" if count >= 1 << 20 else f"{count} bytes"


class ByteStream:
    """Reads forward, tells where it is, and takes bytes back."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._returned = b""
        self._position = 0
        self._damage: Damaged | None = None

    def tell(self) -> int:
        """Number of unpacked bytes read so far."""
        return self._position

    def read(self, count: int) -> bytes:
        """Up to `count` bytes, fewer at the end. Damage behind the first of them is raised by the next call: what comes before it is not lost."""
        self.raise_damage()
        pieces = [self._returned[:count]]
        self._returned = self._returned[count:]
        left = count - len(pieces[0])
        while left:
            try:
                piece = self._file.read1(left)
            except Damaged as error:
                self._damage = error
                break
            if not piece:
                break
            pieces.append(piece)
            left -= len(piece)
        content = b"".join(pieces)
        self._position += len(content)
        if not content:
            self.raise_damage()
        return content

    def raise_damage(self) -> None:
        """Raises the damage that the last `read` met, if it did."""
        if error := self._damage:
            self._damage = None
            raise error

    def readline(self, limit: int = _BLOCK) -> bytes:
        """Up to and with the next newline, but never more than `limit` bytes."""
        if self._returned:
            end = self._returned.find(b"\n", 0, limit) + 1
            taken = self.read(end or min(limit, len(self._returned)))
            return taken if end or len(taken) == limit else taken + self.readline(limit - len(taken))
        self.raise_damage()
        line = self._file.readline(limit)
        self._position += len(line)
        return line

    def give_back(self, content: bytes) -> None:
        """The next thing that is read."""
        self._returned = content + self._returned
        self._position -= len(content)

    @property
    def members(self) -> int | None:
        """Number of members of a gzip file that were begun; None where it is none."""
        raw = getattr(self._file, "raw", None)
        return raw.members if isinstance(raw, _Gzip) else None

    def skip_damage(self) -> bool:
        """After `Damaged`: go on behind it, where the next member of a gzip file begins; False where there is none."""
        return isinstance(self._file, io.BufferedReader) and isinstance(self._file.raw, _Gzip) and self._file.raw.skip_damage()


class _Gzip(io.RawIOBase):
    """The members of a gzip file, one after another. Each can be read alone, so that damage costs one of them."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._packed = b""
        self._member = zlib.decompressobj(31)
        self._inside = False
        """In the middle of a member."""
        self.members = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        while True:
            self._packed = self._packed or self._file.read(_BLOCK)
            if not self._packed and not self._inside:
                return 0
            if not self._packed:
                self._inside = False
                raise Damaged("truncated gzip file")
            if not self._inside:
                self._packed = self._packed.lstrip(b"\0")  # padding of tapes and block devices
                if not self._packed:
                    continue
                self._packed += self._file.read(2) if len(self._packed) < 3 else b""
                if not self._packed.startswith(_GZIP):
                    raise Damaged("bytes between the members of a gzip file that are none")
                self._member = zlib.decompressobj(31)
                self.members += 1
            try:
                content = self._member.decompress(self._packed, len(buffer))
            except zlib.error as error:
                self._inside = False
                raise Damaged(f"damaged gzip file ({str(error).split(': ')[-1]})") from error
            self._inside = not self._member.eof
            self._packed = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
            if content:
                buffer[: len(content)] = content
                return len(content)

    def skip_damage(self) -> bool:
        """To the next place that looks like a member's beginning; whether there is one."""
        self._inside = False
        packed = self._packed[1:]
        while (place := packed.find(_GZIP)) < 0:
            more = self._file.read(_BLOCK)
            if not more:
                self._packed = b""
                return False
            packed = packed[-2:] + more
        self._packed = packed[place:]
        return True


class _Bzip2(io.RawIOBase):
    """A bzip2 file whose damage is `Damaged`."""

    def __init__(self, file: BinaryIO):
        self._file = bz2.BZ2File(file)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        try:
            content = self._file.read1(len(buffer))
        except EOFError as error:
            raise Damaged("truncated bzip2 file") from error
        except (OSError, ValueError) as error:
            raise Damaged("damaged bzip2 file") from error
        buffer[: len(content)] = content
        return len(content)
