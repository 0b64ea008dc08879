"""truncate(2), ftruncate(2), O_TRUNC"""
import errno
import os
import shutil
import subprocess

from support import as_user, fails, later, opened, read, write

UNIT, INLINE, CHUNK = 4096, 16 << 10, 64 << 20


def case_down_and_up_reads_zeros(d):
    """What was cut off never comes back, at every kind of border."""
    for size in (100, UNIT, INLINE, INLINE + 1, 300_000, CHUNK + 5000):
        for cut in {0, 1, size // 2, size - 1}:
            with opened(f"{d}/f", os.O_RDWR | os.O_CREAT | os.O_TRUNC) as fd:
                os.pwrite(fd, b"a" * min(size, 300_000), max(0, size - 300_000))
                os.ftruncate(fd, cut), os.ftruncate(fd, size)
                assert os.fstat(fd).st_size == size
                tail = os.pread(fd, size - max(cut, size - 300_000), max(cut, size - 300_000))
                assert tail == bytes(len(tail)) and len(tail) > 0, (size, cut)


def case_same_through_a_fresh_handle(d):
    """A cut inside a unit is on the servers, not only in the cache of the handle."""
    write(f"{d}/f", b"a" * 100_000)
    os.truncate(f"{d}/f", 50_001)
    assert read(f"{d}/f") == b"a" * 50_001
    write(f"{d}/f", b"b", "ab"), os.truncate(f"{d}/f", 60_000)
    assert read(f"{d}/f") == b"a" * 50_001 + b"b" + bytes(9_998)


def case_grows_sparse(d):
    """A grown file reads zeros; a write into the middle keeps them around it."""
    with opened(f"{d}/f") as fd:
        os.ftruncate(fd, 3 * CHUNK)
        os.pwrite(fd, b"mid", CHUNK + 1000)
        assert os.pread(fd, 1005, CHUNK) == bytes(1000) + b"mid" + bytes(2)
        assert os.pread(fd, 100, 3 * CHUNK - 10) == bytes(10)


def case_o_trunc(d):
    """Open with O_TRUNC empties the file for every handle."""
    write(f"{d}/f", b"a" * 100_000)
    with opened(f"{d}/f", os.O_RDWR) as old, opened(f"{d}/f", os.O_WRONLY | os.O_TRUNC):
        assert os.fstat(old).st_size == 0 and os.pread(old, 10, 0) == b""


def case_o_trunc_of_a_running_program(d):
    """ETXTBSY, with or without the right to write asked for, and the program stays whole (open(2))."""
    shutil.copy(shutil.which("sleep"), f"{d}/f")
    size = os.stat(f"{d}/f").st_size
    program = subprocess.Popen([f"{d}/f", "100"])
    try:
        for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
            with fails(errno.ETXTBSY):
                os.open(f"{d}/f", flags | os.O_TRUNC)
            assert os.stat(f"{d}/f").st_size == size, flags
    finally:
        program.kill(), program.wait()


def case_o_trunc_sets_times(d):
    """Even if the file was empty (open(2))."""
    write(f"{d}/f")
    f = later(f"{d}/f")
    os.close(os.open(f"{d}/f", os.O_WRONLY | os.O_TRUNC))
    assert f() == (True, True)


def case_times(d):
    """A change of size sets mtime and ctime."""
    write(f"{d}/f", b"a" * 10)
    f = later(f"{d}/f")
    os.truncate(f"{d}/f", 5)
    assert f() == (True, True)


def case_errors(d):
    """EISDIR, EINVAL for negative, EINVAL or EBADF for a read-only handle, EACCES, ENOENT."""
    write(f"{d}/f"), os.chmod(d, 0o755), os.chmod(f"{d}/f", 0o644)
    with fails(errno.EISDIR):
        os.truncate(d, 0)
    with fails(errno.EINVAL):
        os.truncate(f"{d}/f", -1)
    with fails(errno.ENOENT):
        os.truncate(f"{d}/none", 0)
    with opened(f"{d}/f", os.O_RDONLY) as fd, fails(errno.EINVAL, errno.EBADF):
        os.ftruncate(fd, 0)
    assert as_user(lambda: os.truncate(f"{d}/f", 0)) == errno.EACCES


def case_clears_suid(d):
    """A truncate or an open with O_TRUNC by an ordinary user takes set-user-id away."""
    os.chmod(d, 0o755), write(f"{d}/f", b"abc"), os.chmod(f"{d}/f", 0o6777)
    assert as_user(lambda: os.truncate(f"{d}/f", 1)) == 0
    assert os.stat(f"{d}/f").st_mode & 0o6000 == 0, oct(os.stat(f"{d}/f").st_mode)
    write(f"{d}/g", b"abc"), os.chmod(f"{d}/g", 0o4777)
    assert as_user(lambda: os.close(os.open(f"{d}/g", os.O_WRONLY | os.O_TRUNC))) == 0
    assert os.stat(f"{d}/g").st_mode & 0o7777 == 0o777 and os.stat(f"{d}/g").st_size == 0
