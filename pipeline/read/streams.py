"""A file as a stream of UTF-8 bytes: decompressed, freed of its byte order mark, hashed while it is read.

Decompression is pyarrow's: it reads gzip members and zstd frames that follow each other, and reports a stream that ends
too early, which `zstandard.stream_reader` passes over in silence.
"""

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import pyarrow as pa

from schemas.errors import UserError

#: Extension -> pyarrow's name of the codec.
COMPRESSIONS: Final = {".gz": "gzip", ".zst": "zstd"}
BUFFER: Final = 1 << 18

_UTF8_MARK: Final = b"\xef\xbb\xbf"
_NOT_TEXT: Final = {
    b"\xff\xfe": "is UTF-16, not UTF-8: convert it (`iconv -f UTF-16 -t UTF-8`)",
    b"\xfe\xff": "is UTF-16, not UTF-8: convert it (`iconv -f UTF-16 -t UTF-8`)",
    b"\x1f\x8b": "is compressed with gzip: let its name end in .gz",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd: let its name end in .zst",
    b"PAR1": "is a Parquet file: let its name end in .parquet",
    b"ARROW1": "is an Arrow file: let its name end in .arrow",
}


class HashedFile(io.RawIOBase):
    """Counts and hashes the bytes of a file as they are read; does not close the file."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        read = self._file.readinto(buffer)
        self._digest.update(memoryview(buffer)[:read])
        self.bytes += read
        return read

    @property
    def sha256(self) -> str:
        """Of all that was read so far, in hexadecimal."""
        return self._digest.hexdigest()


@contextmanager
def text_stream(file: io.RawIOBase, compression: str | None, name: str) -> Iterator[io.BufferedReader]:
    """The bytes of `file`, decompressed, from behind the byte order mark on.

    Raises `UserError` when the first bytes are not those of a UTF-8 text. A damaged compressed stream raises `OSError`
    from `read`.
    """
    raw = file if compression is None else pa.CompressedInputStream(pa.PythonFile(file, mode="r"), compression)
    with io.BufferedReader(raw, BUFFER) as stream:
        head = stream.peek(8)
        for magic, complaint in _NOT_TEXT.items():
            if head.startswith(magic):
                raise UserError(f"{name} {complaint}.")
        if head.startswith(_UTF8_MARK):
            stream.read(len(_UTF8_MARK))
        yield stream
