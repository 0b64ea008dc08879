"""readdir(3), telldir(3), getdents(2)"""
import ctypes
import os

from support import libc, write


class Dirent(ctypes.Structure):
    _fields_ = [("ino", ctypes.c_uint64), ("off", ctypes.c_int64), ("reclen", ctypes.c_ushort), ("type", ctypes.c_ubyte), ("name", ctypes.c_char * 256)]


libc.opendir.restype = ctypes.c_void_p
libc.readdir64.restype = ctypes.POINTER(Dirent)
libc.telldir.restype = ctypes.c_long


class Directory:
    def __init__(self, path):
        self.handle = ctypes.c_void_p(libc.opendir(os.fsencode(path)))
        assert self.handle.value, path

    def next(self):
        entry = libc.readdir64(self.handle)
        return (entry.contents.name.decode(), entry.contents.ino, entry.contents.type) if entry else None

    def rest(self):
        names = []
        while entry := self.next():
            names.append(entry[0])
        return names

    def tell(self):
        return libc.telldir(self.handle)

    def seek(self, cookie):
        libc.seekdir(self.handle, ctypes.c_long(cookie))

    def rewind(self):
        libc.rewinddir(self.handle)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        libc.closedir(self.handle)


def make(d, count):
    for n in range(count):
        write(f"{d}/name-{n:05}")
    return {f"name-{n:05}" for n in range(count)}


def case_dots_inodes_and_kinds(d):
    """`.` and `..` are listed, d_ino is st_ino, d_type is the kind."""
    write(f"{d}/f"), os.mkdir(f"{d}/s"), os.symlink("f", f"{d}/l"), os.mkfifo(f"{d}/p")
    with Directory(d) as directory:
        found = {}
        while entry := directory.next():
            assert entry[0] not in found
            found[entry[0]] = entry[1:]
    assert set(found) == {".", "..", "f", "s", "l", "p"}
    kinds = {"f": 8, "s": 4, "l": 10, "p": 1, ".": 4, "..": 4}
    for name, (inode, kind) in found.items():
        assert kind == kinds[name], (name, kind)
        if name != "..":
            assert inode == os.lstat(f"{d}/{name}").st_ino, name


def case_seekdir(d):
    """From each cookie the same rest follows."""
    make(d, 500)
    with Directory(d) as directory:
        cookies, names = [directory.tell()], []
        while entry := directory.next():
            names.append(entry[0])
            cookies.append(directory.tell())
        for at in list(range(0, len(names), 37)) + [len(names)]:
            directory.seek(cookies[at])
            assert directory.rest() == names[at:], at


def case_removed_while_listing(d):
    """rm -r: each name is removed as it is read, and none is passed over."""
    names = make(d, 3000)
    with Directory(d) as directory:
        while entry := directory.next():
            if entry[0] not in (".", ".."):
                os.unlink(f"{d}/{entry[0]}")
                names.remove(entry[0])
    assert not names and not os.listdir(d)


def case_added_while_listing(d):
    """Names that were there all along come exactly once, whatever is added, removed and renamed meanwhile."""
    names = make(d, 2000)
    seen, count = [], 0
    with Directory(d) as directory:
        while entry := directory.next():
            seen.append(entry[0])
            count += 1
            write(f"{d}/added-{count}") if count < 1000 else None
            if count % 3 == 0 and count < 1000:
                os.rename(f"{d}/added-{count}", f"{d}/again-{count}")
    listed = [name for name in seen if name in names]
    assert len(listed) == len(set(listed)) == len(names)


def case_rewind_sees_changes(d):
    """rewinddir lists the directory as it is now."""
    make(d, 5)
    with Directory(d) as directory:
        directory.rest()
        write(f"{d}/new"), os.unlink(f"{d}/name-00002")
        directory.rewind()
        assert set(directory.rest()) == {".", "..", "new", "name-00000", "name-00001", "name-00003", "name-00004"}
