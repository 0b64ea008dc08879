"""mmap(2), msync(2)"""
import mmap
import os
import signal

from support import opened, read, write

PAGE = mmap.PAGESIZE


def case_read_sees_stores_and_back(d):
    """A shared mapping and read/write are one and the same content, before any sync."""
    for size in (2 * PAGE, 100 * PAGE):
        write(f"{d}/f", b"a" * size)
        with opened(f"{d}/f") as fd, mmap.mmap(fd, size) as area:
            area[10:15] = b"store"
            assert os.pread(fd, 5, 10) == b"store"
            os.pwrite(fd, b"write", size - 20)
            assert area[size - 20:size - 15] == b"write"


def case_stored_for_good(d):
    """After munmap and close a fresh handle reads it; also after msync alone."""
    write(f"{d}/f", b"a" * 50 * PAGE)
    with opened(f"{d}/f") as fd:
        with mmap.mmap(fd, 50 * PAGE) as area:
            for page in range(0, 50, 7):
                area[page * PAGE + 5] = ord("b")
            area.flush()
        os.fsync(fd)
    expected = bytearray(b"a" * 50 * PAGE)
    for page in range(0, 50, 7):
        expected[page * PAGE + 5] = ord("b")
    assert read(f"{d}/f") == bytes(expected)


def case_private_keeps_to_itself(d):
    """Stores in a private mapping never reach the file."""
    write(f"{d}/f", b"a" * PAGE)
    with opened(f"{d}/f") as fd, mmap.mmap(fd, PAGE, flags=mmap.MAP_PRIVATE) as area:
        area[0:1] = b"x"
        assert area[0:1] == b"x" and os.pread(fd, 1, 0) == b"a"
    assert read(f"{d}/f") == b"a" * PAGE


def case_rest_of_the_last_page(d):
    """It reads zero, and stores there do not make the file longer."""
    write(f"{d}/f", b"a" * 100)
    with opened(f"{d}/f") as fd, mmap.mmap(fd, 100) as area:
        assert area[99:100] == b"a"
        area[0:1] = b"b"
    assert read(f"{d}/f") == b"b" + b"a" * 99


def case_stores_into_a_hole(d):
    """They become data."""
    with opened(f"{d}/f") as fd:
        os.ftruncate(fd, 64 * PAGE)
        with mmap.mmap(fd, 64 * PAGE) as area:
            assert area[40 * PAGE:41 * PAGE] == bytes(PAGE)
            area[40 * PAGE:40 * PAGE + 4] = b"data"
    content = read(f"{d}/f")
    assert content[40 * PAGE:40 * PAGE + 4] == b"data" and content.count(0) == 64 * PAGE - 4


def case_past_the_end_is_sigbus(d):
    """A page wholly past the end of a file that was cut."""
    write(f"{d}/f", b"a" * 3 * PAGE)
    pid = os.fork()
    if pid == 0:
        fd = os.open(f"{d}/f", os.O_RDWR)
        area = mmap.mmap(fd, 3 * PAGE)
        os.ftruncate(fd, PAGE)
        area[2 * PAGE]
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGBUS


def case_unlinked(d):
    """A mapping outlives handle and name."""
    write(f"{d}/f", b"a" * 20 * PAGE)
    fd = os.open(f"{d}/f", os.O_RDWR)
    area = mmap.mmap(fd, 20 * PAGE)
    os.close(fd), os.unlink(f"{d}/f")
    area[15 * PAGE:15 * PAGE + 3] = b"xyz"
    assert area[15 * PAGE - 1:15 * PAGE + 4] == b"axyza"
    area.close()
