"""utimensat(2), and which calls set which time"""
import errno
import os
import time

from support import as_user, later, opened, read, write


def case_nanoseconds_are_kept(d):
    """Each nanosecond, before 1970 and after 2038 too."""
    write(f"{d}/f")
    for stamp in (0, 1, 999_999_999, 1_600_000_000_123_456_789, -1_500_000_001, 5_000_000_000_000_000_007):
        os.utime(f"{d}/f", ns=(stamp, stamp + 1))
        status = os.stat(f"{d}/f")
        assert (status.st_atime_ns, status.st_mtime_ns) == (stamp, stamp + 1), (stamp, status)


def case_symlink_itself(d):
    """AT_SYMLINK_NOFOLLOW sets the link's times, not the target's."""
    write(f"{d}/f"), os.symlink("f", f"{d}/l")
    before = os.stat(f"{d}/f").st_mtime_ns
    os.utime(f"{d}/l", ns=(5, 6), follow_symlinks=False)
    assert os.lstat(f"{d}/l").st_mtime_ns == 6 and os.stat(f"{d}/f").st_mtime_ns == before


def case_permission(d):
    """Only the owner sets a time; who may write may set now."""
    os.chmod(d, 0o755), write(f"{d}/f"), os.chmod(f"{d}/f", 0o666)
    assert as_user(lambda: os.utime(f"{d}/f", ns=(1, 1))) == errno.EPERM
    assert as_user(lambda: os.utime(f"{d}/f")) == 0
    os.chmod(f"{d}/f", 0o644)
    assert as_user(lambda: os.utime(f"{d}/f")) == errno.EACCES


def case_write_sets_mtime_at_once(d):
    """stat after a write that is still buffered shows the new time and size; a read changes neither."""
    write(f"{d}/f", b"a" * 10)
    with opened(f"{d}/f") as fd:
        changed = later(f"{d}/f")
        os.pwrite(fd, b"b" * 50_000, 0)
        assert changed() == (True, True) and os.stat(f"{d}/f").st_size == 50_000
        changed = later(f"{d}/f")
        os.pread(fd, 10, 0)
        assert changed() == (False, False)


def case_set_time_survives_close(d):
    """A time set by hand after a write is not overwritten when the buffer is flushed: cp -p and tar rely on it."""
    for size in (10, 300_000):
        with opened(f"{d}/f{size}") as fd:
            os.write(fd, b"a" * size)
            os.utime(fd, ns=(1_000_000_007, 2_000_000_009))
        time.sleep(0.05)
        status = os.stat(f"{d}/f{size}")
        assert (status.st_atime_ns, status.st_mtime_ns) == (1_000_000_007, 2_000_000_009), (size, status)
        assert read(f"{d}/f{size}") == b"a" * size


def case_ctime_cannot_be_set(d):
    """utimensat sets ctime to now."""
    write(f"{d}/f")
    changed = later(f"{d}/f")
    os.utime(f"{d}/f", ns=(1, 1))
    assert changed()[1]


def case_chmod_chown_set_ctime_alone(d):
    """mtime stays."""
    write(f"{d}/f")
    for action in (lambda: os.chmod(f"{d}/f", 0o600), lambda: os.chown(f"{d}/f", 1, 1)):
        changed = later(f"{d}/f")
        action()
        assert changed() == (False, True)
