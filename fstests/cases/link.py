"""link(2)"""
import errno
import os
import stat

from support import fails, later, read, write


def case_one_file_two_names(d):
    """Content, attributes and inode are shared; the count says how many."""
    write(f"{d}/a", b"one"), os.link(f"{d}/a", f"{d}/b")
    write(f"{d}/b", b" two", "ab"), os.chmod(f"{d}/a", 0o600)
    a, b = os.stat(f"{d}/a"), os.stat(f"{d}/b")
    assert read(f"{d}/a") == b"one two" and a.st_ino == b.st_ino and a.st_nlink == b.st_nlink == 2 and a.st_mode == b.st_mode
    os.unlink(f"{d}/a")
    assert os.stat(f"{d}/b").st_nlink == 1 and read(f"{d}/b") == b"one two"


def case_errors(d):
    """EEXIST, ENOENT, EPERM for a directory, ENOTDIR."""
    write(f"{d}/f"), os.mkdir(f"{d}/dir")
    for old, new, number in (("f", "dir", errno.EEXIST), ("none", "x", errno.ENOENT), ("dir", "x", errno.EPERM), ("f", "f/x", errno.ENOTDIR), ("f", "none/x", errno.ENOENT)):
        with fails(number):
            os.link(f"{d}/{old}", f"{d}/{new}")


def case_other_kinds(d):
    """A symlink itself, a fifo and a socket node can have two names."""
    os.symlink("nowhere", f"{d}/l"), os.mkfifo(f"{d}/p"), os.mknod(f"{d}/s", stat.S_IFSOCK | 0o600)
    for name in "lps":
        os.link(f"{d}/{name}", f"{d}/{name}2", follow_symlinks=False)
        assert os.lstat(f"{d}/{name}").st_ino == os.lstat(f"{d}/{name}2").st_ino and os.lstat(f"{d}/{name}").st_nlink == 2
    assert os.readlink(f"{d}/l2") == "nowhere"


def case_times(d):
    """The file's ctime rises, its mtime does not; both of the directory do."""
    write(f"{d}/f"), os.mkdir(f"{d}/to")
    f, to = later(f"{d}/f"), later(f"{d}/to")
    os.link(f"{d}/f", f"{d}/to/g")
    assert f() == (False, True) and to() == (True, True)


def case_many(d):
    """A thousand names."""
    write(f"{d}/f", b"x")
    for n in range(1000):
        os.link(f"{d}/f", f"{d}/n{n}")
    assert os.stat(f"{d}/n999").st_nlink == 1001
    for n in range(1000):
        os.unlink(f"{d}/n{n}")
    assert os.stat(f"{d}/f").st_nlink == 1
