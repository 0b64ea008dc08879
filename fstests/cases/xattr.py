"""setxattr(2) and friends"""
import errno
import os

from support import as_user, fails, later, write


def case_set_get_list_remove(d):
    """On files and directories; any bytes, also none."""
    write(f"{d}/f"), os.mkdir(f"{d}/dir")
    for path in (f"{d}/f", f"{d}/dir"):
        os.setxattr(path, "user.a", b"one\0two\xff"), os.setxattr(path, "user.empty", b""), os.setxattr(path, "trusted.t", b"t")
        assert os.getxattr(path, "user.a") == b"one\0two\xff" and os.getxattr(path, "user.empty") == b""
        assert {"user.a", "user.empty", "trusted.t"} <= set(os.listxattr(path))
        os.removexattr(path, "user.a")
        assert "user.a" not in os.listxattr(path)
        with fails(errno.ENODATA):
            os.getxattr(path, "user.a")
        with fails(errno.ENODATA):
            os.removexattr(path, "user.a")


def case_create_and_replace(d):
    """XATTR_CREATE: EEXIST; XATTR_REPLACE: ENODATA."""
    write(f"{d}/f")
    with fails(errno.ENODATA):
        os.setxattr(f"{d}/f", "user.a", b"1", os.XATTR_REPLACE)
    os.setxattr(f"{d}/f", "user.a", b"1", os.XATTR_CREATE)
    with fails(errno.EEXIST):
        os.setxattr(f"{d}/f", "user.a", b"2", os.XATTR_CREATE)
    os.setxattr(f"{d}/f", "user.a", b"longer", os.XATTR_REPLACE)
    assert os.getxattr(f"{d}/f", "user.a") == b"longer"


def case_limits(d):
    """A name of 255 bytes is taken, one of 256 is not; nor is an unknown namespace."""
    write(f"{d}/f")
    os.setxattr(f"{d}/f", "user." + "n" * 250, b"x")
    assert os.getxattr(f"{d}/f", "user." + "n" * 250) == b"x"
    with fails(errno.ERANGE, errno.ENAMETOOLONG):
        os.setxattr(f"{d}/f", "user." + "n" * 251, b"x")
    with fails(errno.E2BIG):
        os.setxattr(f"{d}/f", "user.big", b"x" * 65537)
    os.setxattr(f"{d}/f", "user.value", bytes(range(256)) * 8)
    assert os.getxattr(f"{d}/f", "user.value") == bytes(range(256)) * 8


def case_links_share_them_and_rename_keeps_them(d):
    """They belong to the inode."""
    write(f"{d}/f"), os.setxattr(f"{d}/f", "user.a", b"1"), os.link(f"{d}/f", f"{d}/g"), os.rename(f"{d}/f", f"{d}/h")
    assert os.getxattr(f"{d}/g", "user.a") == os.getxattr(f"{d}/h", "user.a") == b"1"


def case_new_file_of_the_same_name_has_none(d):
    """They go with the inode."""
    write(f"{d}/f"), os.setxattr(f"{d}/f", "user.a", b"1"), os.unlink(f"{d}/f"), write(f"{d}/f")
    assert "user.a" not in os.listxattr(f"{d}/f")


def case_user_namespace_follows_permissions(d):
    """Write permission sets, read permission reads; none on symlinks."""
    os.chmod(d, 0o755), write(f"{d}/f"), os.chmod(f"{d}/f", 0o644), os.setxattr(f"{d}/f", "user.a", b"1")
    assert as_user(lambda: os.setxattr(f"{d}/f", "user.a", b"2")) == errno.EACCES
    assert as_user(lambda: os.getxattr(f"{d}/f", "user.a")) == 0
    assert as_user(lambda: os.setxattr(f"{d}/f", "trusted.a", b"2")) == errno.EPERM
    os.symlink("f", f"{d}/l")
    with fails(errno.EPERM):
        os.setxattr(f"{d}/l", "user.a", b"1", follow_symlinks=False)


def case_sets_ctime(d):
    """And not mtime."""
    write(f"{d}/f")
    changed = later(f"{d}/f")
    os.setxattr(f"{d}/f", "user.a", b"1")
    assert changed() == (False, True)


def case_many(d):
    """A hundred attributes on one file."""
    write(f"{d}/f")
    names = {f"user.number{n}" for n in range(100)}
    for name in names:
        os.setxattr(f"{d}/f", name, name.encode())
    assert names <= set(os.listxattr(f"{d}/f")) and all(os.getxattr(f"{d}/f", name) == name.encode() for name in names)
