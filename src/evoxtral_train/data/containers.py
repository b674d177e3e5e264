"""Detects truncated audio files from their container; libsndfile silently reads whatever is there.

WAV, AIFF and AU store how many bytes of samples follow. An Ogg file (Vorbis, Opus) marks its last page. A FLAC, and an MP3 with a
Xing header, store the number of samples, so truncation shows when they are decoded. MP4 and Matroska (WebM) store the sizes of
their parts. An MP3 without that header, an AAC stream or a live WebM (as browsers record it), cut between two frames, cannot be
told from a whole one.
"""

import os
import struct
from typing import BinaryIO

_UNKNOWN_BYTES = 0x7FFFF000  # a file written to a pipe gets a size of at least this, or 0
_EBML, _SEGMENT = b"\x1aE\xdf\xa3", b"\x18S\x80g"  # the first two elements of a Matroska file
_LONGEST_PAGE = 65_307  # bytes of an Ogg page: RFC 3533


def promised_share(file: BinaryIO) -> float | None:
    """Bytes of samples that a WAV, AIFF or AU header promises, divided by those that follow: at most 1.0 in a whole file, 2.0 in
    one cut in half. None if the header does not say, or for other formats."""
    data = _data(file)
    if data is None:
        return None
    start, promised = data
    following = file.seek(0, os.SEEK_END) - start
    return promised / following if following > 0 else None


def is_cut_off(file: BinaryIO) -> bool:
    """Whether an Ogg, MP4 or Matroska file ends before its last part does."""
    file.seek(0)
    head = file.read(8)
    if head[:4] == b"OggS":
        return _ends_without_last_page(file)
    if head[4:] == b"ftyp":
        return _ends_inside_a_box(file)
    return head[:4] == _EBML and _ends_inside_the_segment(file)


def _ends_without_last_page(file: BinaryIO) -> bool:
    """Whether an Ogg file ends inside a page, or after a page that is not marked as the last one (RFC 3533)."""
    file.seek(max(file.seek(0, os.SEEK_END) - 2 * _LONGEST_PAGE, 0))
    tail = file.read()
    if (start := tail.rfind(b"OggS\0")) < 0:  # something else follows
        return False
    page = tail[start:]
    if len(page) < 27:
        return True
    segments = page[27 : 27 + page[26]]
    return len(page) < 27 + page[26] + sum(segments) or not page[5] & 4


def _ends_inside_a_box(file: BinaryIO) -> bool:
    """Whether a top-level box of an MP4 file is larger than what follows (ISO/IEC 14496-12, section 4.2)."""
    offset, end = 0, file.seek(0, os.SEEK_END)
    while offset < end:
        file.seek(offset)
        head = file.read(16)
        if len(head) < 8:
            return any(head)  # zeros fill a file up
        size = int.from_bytes(head[:4], "big")
        if size == 1:
            size = int.from_bytes(head[8:], "big")
        if size < 8:  # 0: up to the end of the file; otherwise not a box
            return False
        offset += size
    return offset > end


def _ends_inside_the_segment(file: BinaryIO) -> bool:
    """Whether a Matroska file's one segment is larger than what follows (RFC 9559); its size is unknown in a live one."""
    file.seek(len(_EBML))
    header = _variable_size(file) or 0
    file.seek(header, os.SEEK_CUR)
    if file.read(4) != _SEGMENT or (size := _variable_size(file)) is None:
        return False
    return file.tell() + size > file.seek(0, os.SEEK_END)


def _variable_size(file: BinaryIO) -> int | None:
    """An EBML size: as many leading zero bits as bytes follow the first, a one, and the number (RFC 8794, section 4). All ones
    mean that it is unknown: None."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    following = 8 - first[0].bit_length()
    bits = 7 * (following + 1)
    size = int.from_bytes(first + file.read(following), "big") & ((1 << bits) - 1)
    return None if size == (1 << bits) - 1 else size


def _data(file: BinaryIO) -> tuple[int, int] | None:
    """(offset of the samples, promised bytes of samples), from the container's header."""
    file.seek(0)
    head = file.read(12)
    if head[:4] == b".snd" and len(head) == 12:
        return _known(*struct.unpack(">II", head[4:]))
    form, kind = head[:4], head[8:]
    if form in (b"RIFF", b"RF64", b"BW64") and kind == b"WAVE":
        return _chunk(file, "<", b"data")
    if form == b"RIFX" and kind == b"WAVE":
        return _chunk(file, ">", b"data")
    if form == b"FORM" and kind in (b"AIFF", b"AIFC"):
        return _chunk(file, ">", b"SSND")
    return None


def _chunk(file: BinaryIO, order: str, name: bytes) -> tuple[int, int] | None:
    """The chunk with the samples. A WAV beyond 4 GB stores its size in the chunk `ds64` (EBU Tech 3306)."""
    long_size = None
    while len(head := file.read(8)) == 8:
        size = struct.unpack(f"{order}I", head[4:])[0]
        if head[:4] == name:
            return (file.tell(), long_size) if long_size else _known(file.tell(), size)
        start = file.tell()
        if head[:4] == b"ds64" and len(sizes := file.read(16)) == 16:
            long_size = struct.unpack("<Q", sizes[8:])[0]
        file.seek(start + size + size % 2)
    return None


def _known(start: int, size: int) -> tuple[int, int] | None:
    return (start, size) if 0 < size < _UNKNOWN_BYTES else None
