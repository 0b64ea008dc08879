"""What the cases share: calls that python does not have, expected errors, other users."""
import contextlib
import ctypes
import errno
import os
import time

libc = ctypes.CDLL(None, use_errno=True)
AT_FDCWD = -100
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO = 1, 2, 16


@contextlib.contextmanager
def fails(*errnos):
    """The block must raise OSError with one of these errnos."""
    try:
        yield
    except OSError as error:
        if error.errno not in errnos:
            raise AssertionError(f"{errno.errorcode[error.errno]}, expected {[errno.errorcode[e] for e in errnos]}") from error
        return
    raise AssertionError(f"succeeded, expected {[errno.errorcode[e] for e in errnos]}")


def check(result, *names):
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), *names)
    return result


def renameat2(old, new, flags):
    check(libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), ctypes.c_uint(flags)), old)


def fallocate(fd, mode, offset, length):
    check(libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)))


def write(path, content=b"", mode="wb"):
    with open(path, mode) as file:
        file.write(content)
    return path


def read(path):
    with open(path, "rb") as file:
        return file.read()


@contextlib.contextmanager
def opened(path, flags=os.O_RDWR | os.O_CREAT, mode=0o644):
    fd = os.open(path, flags, mode)
    try:
        yield fd
    finally:
        os.close(fd)


def as_user(action, uid=65534, gid=65534):
    """Runs action() as another user; returns its errno, 0 if it succeeded."""
    pid = os.fork()
    if pid == 0:
        code = 255
        try:
            os.setgroups([])
            os.setgid(gid)
            os.setuid(uid)
            action()
            code = 0
        except OSError as error:
            code = error.errno
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def times(path):
    status = os.lstat(path)
    return status.st_mtime_ns, status.st_ctime_ns


def later(path_before, path_after=None):
    """Returns a function that says whether mtime and ctime rose since now. Waits for the clock to move on."""
    before = times(path_before)
    time.sleep(0.02)
    return lambda: tuple(now > then for now, then in zip(times(path_after or path_before), before))
