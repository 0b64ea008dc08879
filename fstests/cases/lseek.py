"""lseek(2): SEEK_DATA, SEEK_HOLE"""
import errno
import os

from support import fails, opened, write

GRAIN, CHUNK = 1 << 20, 64 << 20


def case_data_and_holes(d):
    """Data is found where it is; a hole not before the data ends, nor long after it."""
    with opened(f"{d}/f") as fd:
        os.ftruncate(fd, 4 * CHUNK)
        for offset in (10 << 20, CHUNK + (10 << 20), 3 * CHUNK):
            os.pwrite(fd, b"a" * 65536, offset)
        os.fsync(fd)
        for offset, following in ((10 << 20, CHUNK + (10 << 20)), (CHUNK + (10 << 20), 3 * CHUNK)):
            assert os.lseek(fd, offset, os.SEEK_DATA) == offset
            assert offset - GRAIN <= os.lseek(fd, offset - 2 * GRAIN, os.SEEK_DATA) <= offset
            hole = os.lseek(fd, offset, os.SEEK_HOLE)
            assert offset + 65536 <= hole <= offset + 65536 + GRAIN, (offset, hole)
            assert following - GRAIN <= os.lseek(fd, hole, os.SEEK_DATA) <= following


def case_unsynced_data_is_data(d):
    """Whatever was written and is still buffered must not look like a hole: cp --sparse would lose it."""
    with opened(f"{d}/f") as fd:
        os.ftruncate(fd, 4 << 20)
        os.pwrite(fd, b"a" * 4096, 2 << 20)
        assert os.lseek(fd, 2 << 20, os.SEEK_DATA) == 2 << 20
        assert os.lseek(fd, 2 << 20, os.SEEK_HOLE) >= (2 << 20) + 4096


def case_end(d):
    """The end of the file is a hole; at and past it ENXIO."""
    write(f"{d}/f", b"a" * 100)
    with opened(f"{d}/f") as fd:
        assert os.lseek(fd, 0, os.SEEK_DATA) == 0 and os.lseek(fd, 0, os.SEEK_HOLE) == 100 and os.lseek(fd, 99, os.SEEK_DATA) == 99
        for whence in (os.SEEK_DATA, os.SEEK_HOLE):
            with fails(errno.ENXIO):
                os.lseek(fd, 100, whence)
            with fails(errno.ENXIO):
                os.lseek(fd, -1, whence)


def case_no_data_at_all(d):
    """A file that is one hole."""
    with opened(f"{d}/f") as fd:
        os.ftruncate(fd, CHUNK * 2)
        assert os.lseek(fd, 5, os.SEEK_HOLE) == 5
        with fails(errno.ENXIO):
            os.lseek(fd, 0, os.SEEK_DATA)


def case_ordinary(d):
    """SEEK_SET, CUR and END; EINVAL below zero; past the end is allowed and reads nothing."""
    write(f"{d}/f", b"0123456789")
    with opened(f"{d}/f") as fd:
        assert os.lseek(fd, -3, os.SEEK_END) == 7 and os.read(fd, 1) == b"7" and os.lseek(fd, -2, os.SEEK_CUR) == 6
        with fails(errno.EINVAL):
            os.lseek(fd, -11, os.SEEK_END)
        os.lseek(fd, 1 << 40, os.SEEK_SET)
        assert os.read(fd, 1) == b""
