"""rename(2), renameat2(2)"""
import errno
import os

from support import RENAME_EXCHANGE, RENAME_NOREPLACE, as_user, fails, later, opened, read, renameat2, write


def case_replaces_a_file(d):
    """The new name refers to the old file; what it named before is gone."""
    write(f"{d}/a", b"a"), write(f"{d}/b", b"b")
    inode = os.stat(f"{d}/a").st_ino
    os.rename(f"{d}/a", f"{d}/b")
    assert os.listdir(d) == ["b"] and read(f"{d}/b") == b"a" and os.stat(f"{d}/b").st_ino == inode


def case_open_target_lives_on(d):
    """A file that is renamed over stays readable and writable through its handle."""
    write(f"{d}/new", b"new")
    with opened(f"{d}/old") as fd:
        os.write(fd, b"old")
        os.rename(f"{d}/new", f"{d}/old")
        assert os.pread(fd, 9, 0) == b"old" and os.fstat(fd).st_nlink == 0
        os.pwrite(fd, b"still", 0)
        assert os.pread(fd, 9, 0) == b"still"
    assert read(f"{d}/old") == b"new"


def case_directory_over_empty_directory(d):
    """It works; over a full one it is ENOTEMPTY or EEXIST, and nothing changed."""
    os.makedirs(f"{d}/a/x"), os.mkdir(f"{d}/empty"), os.makedirs(f"{d}/full/y")
    with fails(errno.ENOTEMPTY, errno.EEXIST):
        os.rename(f"{d}/a", f"{d}/full")
    os.rename(f"{d}/a", f"{d}/empty")
    assert sorted(os.listdir(d)) == ["empty", "full"] and os.listdir(f"{d}/empty") == ["x"]


def case_kinds_do_not_mix(d):
    """ENOTDIR for a directory over a file, EISDIR for a file over a directory."""
    os.mkdir(f"{d}/dir"), write(f"{d}/file")
    with fails(errno.ENOTDIR):
        os.rename(f"{d}/dir", f"{d}/file")
    with fails(errno.EISDIR):
        os.rename(f"{d}/file", f"{d}/dir")


def case_into_itself(d):
    """EINVAL at any depth."""
    os.makedirs(f"{d}/a/b/c")
    for target in ("a/x", "a/b/x", "a/b/c/x"):
        with fails(errno.EINVAL):
            os.rename(f"{d}/a", f"{d}/{target}")
    with fails(errno.ENOTEMPTY, errno.EEXIST):
        os.rename(f"{d}/a/b/c", f"{d}/a")


def case_two_names_of_one_file(d):
    """Nothing happens, and that is success."""
    write(f"{d}/a"), os.link(f"{d}/a", f"{d}/b")
    os.rename(f"{d}/a", f"{d}/b")
    assert sorted(os.listdir(d)) == ["a", "b"]


def case_link_counts_of_directories(d):
    """A directory that moves takes its `..` along."""
    os.makedirs(f"{d}/a/x"), os.mkdir(f"{d}/b")
    os.rename(f"{d}/a/x", f"{d}/b/x")
    assert os.stat(f"{d}/a").st_nlink == 2 and os.stat(f"{d}/b").st_nlink == 3
    assert os.stat(f"{d}/b/x/..").st_ino == os.stat(f"{d}/b").st_ino


def case_noreplace(d):
    """EEXIST if the new name is taken, else a rename."""
    write(f"{d}/a", b"a"), write(f"{d}/b", b"b")
    with fails(errno.EEXIST):
        renameat2(f"{d}/a", f"{d}/b", RENAME_NOREPLACE)
    assert read(f"{d}/b") == b"b"
    renameat2(f"{d}/a", f"{d}/c", RENAME_NOREPLACE)
    assert sorted(os.listdir(d)) == ["b", "c"]


def case_exchange(d):
    """Both names change places, also of different kinds and directories."""
    os.makedirs(f"{d}/sub/dir/in"), write(f"{d}/file", b"file")
    renameat2(f"{d}/file", f"{d}/sub/dir", RENAME_EXCHANGE)
    assert read(f"{d}/sub/dir") == b"file" and os.listdir(f"{d}/file") == ["in"]
    assert os.stat(f"{d}/sub").st_nlink == 2 and os.stat(d).st_nlink == 4
    with fails(errno.ENOENT):
        renameat2(f"{d}/file", f"{d}/none", RENAME_EXCHANGE)
    with fails(errno.EINVAL):
        renameat2(f"{d}/file", f"{d}/sub", RENAME_EXCHANGE | RENAME_NOREPLACE)


def case_times(d):
    """Both directories' mtime and ctime rise, and the file's ctime."""
    os.mkdir(f"{d}/a"), os.mkdir(f"{d}/b"), write(f"{d}/a/f")
    a, b, f = later(f"{d}/a"), later(f"{d}/b"), later(f"{d}/a/f", f"{d}/b/f")
    os.rename(f"{d}/a/f", f"{d}/b/f")
    assert a() == (True, True) and b() == (True, True) and f() == (False, True)


def case_sticky(d):
    """In a sticky directory others' files can neither be moved nor replaced."""
    os.chmod(d, 0o1777), write(f"{d}/theirs")
    assert as_user(lambda: os.rename(f"{d}/theirs", f"{d}/mine")) in (errno.EPERM, errno.EACCES)
    assert as_user(lambda: (write(f"{d}/own"), os.rename(f"{d}/own", f"{d}/theirs"))) in (errno.EPERM, errno.EACCES)
    assert as_user(lambda: os.rename(f"{d}/own", f"{d}/own2")) == 0


def case_missing_and_bad(d):
    """ENOENT, ENOTDIR, ENAMETOOLONG; EBUSY or EINVAL for dots."""
    write(f"{d}/f")
    with fails(errno.ENOENT):
        os.rename(f"{d}/none", f"{d}/x")
    with fails(errno.ENOENT):
        os.rename(f"{d}/f", f"{d}/none/x")
    with fails(errno.ENOTDIR):
        os.rename(f"{d}/f", f"{d}/f/x")
    with fails(errno.ENAMETOOLONG):
        os.rename(f"{d}/f", f"{d}/{'x' * 256}")
    os.mkdir(f"{d}/dir")
    with fails(errno.EBUSY, errno.EINVAL):
        os.rename(f"{d}/dir/.", f"{d}/other")
