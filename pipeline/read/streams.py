"""A file as a stream of UTF-8 bytes: decompressed, freed of its byte order mark, hashed while it is read.

Both codecs are the standard library's (zstd as backported): they read members and frames that follow each other, also behind
the zeros with which gzip may be padded, where pyarrow's gzip stops; and report a stream that ends too early, which
`zstandard.stream_reader` passes over in silence. To decompress zstd takes as
much memory as the frame's window. Windows up to 2 GiB are read, the largest that the format's own tools write
(`zstd --long=31`); pyarrow takes none over 128 MiB. The memory is used as it fills: a small file needs little of it.
"""

import gzip
import hashlib
import io
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, cast

from schemas.errors import ResourceError, UserError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

#: Extension -> name of the codec.
COMPRESSIONS: Final = {".gz": "gzip", ".zst": "zstd"}
#: Binary logarithm of the largest window of a zstd frame, in bytes.
WINDOW_LOG: Final = 31
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


class _Gzip(io.RawIOBase):
    """Decompressed gzip, whose errors are `OSError`s as those of a file are."""

    def __init__(self, file: io.RawIOBase) -> None:
        self._members = gzip.GzipFile(fileobj=cast("io.BufferedIOBase", file))

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            return self._members.readinto(buffer)
        except (zlib.error, EOFError) as error:
            raise OSError(str(error)) from None


class _Zstd(io.RawIOBase):
    """Decompressed zstd, whose errors are `OSError`s as those of a file are."""

    def __init__(self, file: io.RawIOBase, name: str) -> None:
        self._name = name
        self._frames = zstd.ZstdFile(
            cast("io.BufferedIOBase", file), options={zstd.DecompressionParameter.window_log_max: WINDOW_LOG}
        )

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            return self._frames.readinto(buffer)
        except (zstd.ZstdError, EOFError) as error:
            if "not enough memory" in str(error):
                raise ResourceError(
                    f"{self._name}: no memory for its zstd window, which may be of up to {1 << WINDOW_LOG - 30} GiB. "
                    f"Compress it with a smaller one: `zstd -dc --long={WINDOW_LOG} OLD.zst | zstd -o NEW.zst`."
                ) from None
            raise OSError(str(error)) from None


@contextmanager
def text_stream(file: io.RawIOBase, compression: str | None, name: str) -> Iterator[io.BufferedReader]:
    """The bytes of `file`, decompressed, from behind the byte order mark on.

    Raises `UserError` when the first bytes are not those of a UTF-8 text. A damaged compressed stream raises `OSError`
    from `read`.
    """
    raw: Any = file
    if compression == "gzip":
        raw = _Gzip(file)
    elif compression == "zstd":
        raw = _Zstd(file, name)
    with io.BufferedReader(raw, BUFFER) as stream:
        head = stream.peek(8)
        for magic, complaint in _NOT_TEXT.items():
            if head.startswith(magic):
                raise UserError(f"{name} {complaint}.")
        if head.startswith(_UTF8_MARK):
            stream.read(len(_UTF8_MARK))
        yield stream
