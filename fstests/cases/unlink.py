"""unlink(2), rmdir(2)"""
import errno
import os

from support import as_user, fails, later, opened, read, write


def case_open_file_lives_on(d):
    """Read, write, grow, truncate, fstat, chmod: all through a handle, after the last name went."""
    for size in (10, 100_000):
        with opened(f"{d}/f") as fd:
            os.write(fd, b"x" * size)
            os.unlink(f"{d}/f")
            assert os.listdir(d) == [] and os.fstat(fd).st_nlink == 0 and os.fstat(fd).st_size == size
            os.pwrite(fd, b"end", 200_000)
            assert os.pread(fd, 3, 200_000) == b"end" and os.pread(fd, 1, size) == b"\0"
            os.ftruncate(fd, 5), os.fchmod(fd, 0o600), os.fsync(fd)
            assert os.pread(fd, 100, 0) == b"xxxxx"


def case_name_can_be_used_again_at_once(d):
    """The new file is another one."""
    with opened(f"{d}/f") as old:
        os.write(old, b"old"), os.unlink(f"{d}/f"), write(f"{d}/f", b"new")
        assert os.pread(old, 9, 0) == b"old" and read(f"{d}/f") == b"new" and os.fstat(old).st_ino != os.stat(f"{d}/f").st_ino


def case_errors(d):
    """EISDIR, ENOENT, ENOTDIR, ENOTEMPTY, EINVAL for rmdir of a dot."""
    os.makedirs(f"{d}/dir/sub"), write(f"{d}/f")
    with fails(errno.EISDIR):
        os.unlink(f"{d}/dir")
    with fails(errno.ENOENT):
        os.unlink(f"{d}/none")
    with fails(errno.ENOTDIR):
        os.unlink(f"{d}/f/x")
    with fails(errno.ENOTDIR):
        os.rmdir(f"{d}/f")
    with fails(errno.ENOTEMPTY):
        os.rmdir(f"{d}/dir")
    with fails(errno.EINVAL):
        os.rmdir(f"{d}/dir/sub/.")


def case_rmdir(d):
    """The parent's link count falls; a removed directory that is open is empty and takes no new names."""
    os.mkdir(f"{d}/dir")
    fd = os.open(f"{d}/dir", os.O_RDONLY)
    try:
        os.rmdir(f"{d}/dir")
        assert os.stat(d).st_nlink == 2 and os.listdir(fd) == [] and os.fstat(fd).st_nlink == 0
        with fails(errno.ENOENT):
            os.open("x", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
    finally:
        os.close(fd)


def case_times(d):
    """The directory's times rise, and the ctime of a file that has another name."""
    write(f"{d}/f"), os.link(f"{d}/f", f"{d}/g")
    directory, file = later(d), later(f"{d}/g")
    os.unlink(f"{d}/f")
    assert directory() == (True, True) and file() == (False, True)


def case_permission_is_the_directorys(d):
    """Write permission on the directory decides, not on the file."""
    os.mkdir(f"{d}/open"), os.mkdir(f"{d}/closed"), os.chmod(f"{d}/open", 0o777)
    os.chmod(d, 0o755)
    for name in ("open", "closed"):
        write(f"{d}/{name}/f"), os.chmod(f"{d}/{name}/f", 0)
    assert as_user(lambda: os.unlink(f"{d}/closed/f")) == errno.EACCES
    assert as_user(lambda: os.unlink(f"{d}/open/f")) == 0
