"""copy_file_range(2)"""
import errno
import os
import random

from support import fails, opened, read, write


def copy(source, target, count, source_offset, target_offset):
    done = 0
    while done < count:
        step = os.copy_file_range(source, target, count - done, source_offset + done, target_offset + done)
        if step == 0:
            break
        done += step
    return done


def case_copies_any_range(d):
    """Aligned or not, small or large, into a hole or over data."""
    content = random.Random(1).randbytes(300_000)
    write(f"{d}/a", content)
    for offset, length, to in ((0, 300_000, 0), (1, 100, 5000), (70_001, 150_000, 33), (4096, 8192, 1 << 20)):
        write(f"{d}/b", b"b" * 50_000)
        with opened(f"{d}/a", os.O_RDONLY) as a, opened(f"{d}/b") as b:
            assert copy(a, b, length, offset, to) == length
        expected = bytearray(b"b" * 50_000)
        expected.extend(bytes(max(0, to + length - 50_000)))
        expected[to:to + length] = content[offset:offset + length]
        assert read(f"{d}/b") == bytes(expected), (offset, length, to)


def case_ends_at_the_end(d):
    """0 at the end of the source; a short count over it."""
    write(f"{d}/a", b"0123456789")
    with opened(f"{d}/a", os.O_RDONLY) as a, opened(f"{d}/b") as b:
        assert os.copy_file_range(a, b, 100, 10, 0) == 0 and os.copy_file_range(a, b, 100, 7, 0) == 3
    assert read(f"{d}/b") == b"789"


def case_within_one_file(d):
    """Ranges apart are copied; overlapping ones are EINVAL."""
    write(f"{d}/f", b"a" * 10_000 + b"b" * 10_000)
    with opened(f"{d}/f") as fd:
        assert copy(fd, fd, 5000, 0, 10_000) == 5000
        with fails(errno.EINVAL):
            os.copy_file_range(fd, fd, 5000, 0, 2500)
    assert read(f"{d}/f") == b"a" * 15_000 + b"b" * 5000


def case_errors(d):
    """EBADF for wrong modes, EISDIR for a directory."""
    write(f"{d}/a", b"a"), write(f"{d}/b", b"b")
    with opened(f"{d}/a", os.O_RDONLY) as a, opened(f"{d}/b", os.O_RDONLY) as b, fails(errno.EBADF):
        os.copy_file_range(a, b, 1, 0, 0)
    directory = os.open(d, os.O_RDONLY)
    try:
        with opened(f"{d}/b") as b, fails(errno.EISDIR):
            os.copy_file_range(directory, b, 1, 0, 0)
    finally:
        os.close(directory)
