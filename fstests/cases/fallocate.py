"""fallocate(2), posix_fallocate(3)"""
import errno
import os

from support import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO, fails, fallocate, opened, read

CHUNK = 64 << 20


def filled(fd, size):
    os.pwrite(fd, b"a" * size, 0)


def case_grows(d):
    """Mode 0 grows the file with zeros and keeps what is there; it never shrinks it."""
    with opened(f"{d}/f") as fd:
        filled(fd, 1000)
        fallocate(fd, 0, 500, 100_000)
        assert os.fstat(fd).st_size == 100_500 and os.pread(fd, 100_500, 0) == b"a" * 1000 + bytes(99_500)
        os.posix_fallocate(fd, 0, 10)
        assert os.fstat(fd).st_size == 100_500


def case_keep_size(d):
    """The size stays."""
    with opened(f"{d}/f") as fd:
        filled(fd, 1000)
        fallocate(fd, FALLOC_KEEP_SIZE, 0, 1 << 20)
        assert os.fstat(fd).st_size == 1000
    assert read(f"{d}/f") == b"a" * 1000


def case_punch_hole(d):
    """The range reads zero, its surroundings stay: inline, inside a unit, over units, over a chunk's border, past the end."""
    for base, size, offset, length in ((0, 9000, 100, 500), (0, 200_000, 10_001, 100_003), (0, 200_000, 8192, 8192),
                                       (CHUNK - 50_000, 100_000, 20_000, 60_000), (0, 200_000, 150_000, 1 << 20)):
        with opened(f"{d}/f", os.O_RDWR | os.O_CREAT | os.O_TRUNC) as fd:
            os.pwrite(fd, b"a" * size, base)
            fallocate(fd, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, base + offset, length)
            expected = bytearray(b"a" * size)
            expected[offset:offset + length] = bytes(min(length, size - offset))
            assert os.pread(fd, size + 1, base) == bytes(expected), (base, size, offset, length)
            assert os.fstat(fd).st_size == base + size
        with opened(f"{d}/f", os.O_RDONLY) as fd:
            assert os.pread(fd, size, base) == bytes(expected), "through a fresh handle"


def case_zero_range(d):
    """Zeros; without KEEP_SIZE it may grow the file."""
    with opened(f"{d}/f") as fd:
        filled(fd, 100_000)
        fallocate(fd, FALLOC_ZERO | FALLOC_KEEP_SIZE, 5000, 10_000)
        assert os.pread(fd, 20_000, 0) == b"a" * 5000 + bytes(10_000) + b"a" * 5000
        fallocate(fd, FALLOC_ZERO, 90_000, 20_000)
        assert os.fstat(fd).st_size == 110_000 and os.pread(fd, 30_000, 80_000) == b"a" * 10_000 + bytes(20_000)


def case_punch_frees_space(d):
    """st_blocks falls when whole units are punched."""
    with opened(f"{d}/f") as fd:
        filled(fd, 8 << 20)
        os.fsync(fd)
        fallocate(fd, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, 0, 8 << 20)
        os.fsync(fd)
        assert os.pread(fd, 8 << 20, 0) == bytes(8 << 20)
        assert os.lseek(fd, 0, os.SEEK_HOLE) == 0


def case_errors(d):
    """EINVAL for no length or a negative offset, EBADF for a read-only handle, EOPNOTSUPP or EINVAL for punch without KEEP_SIZE."""
    with opened(f"{d}/f") as fd:
        for offset, length in ((0, 0), (-1, 10), (0, -1)):
            with fails(errno.EINVAL):
                fallocate(fd, 0, offset, length)
        with fails(errno.EOPNOTSUPP, errno.EINVAL):
            fallocate(fd, FALLOC_PUNCH_HOLE, 0, 10)
    with opened(f"{d}/f", os.O_RDONLY) as fd, fails(errno.EBADF):
        fallocate(fd, 0, 0, 10)
