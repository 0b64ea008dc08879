"""open(2): O_APPEND"""
import fcntl
import os

from support import opened, read, write

APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND


def case_goes_to_the_end(d):
    """Wherever the file position is, and also after others made the file longer or shorter."""
    with opened(f"{d}/f", APPEND) as fd, opened(f"{d}/f", os.O_WRONLY) as other:
        os.write(fd, b"one")
        os.lseek(fd, 0, os.SEEK_SET), os.write(fd, b"two")
        os.pwrite(other, b"xxx", 10), os.write(fd, b"three")
        os.ftruncate(other, 4), os.write(fd, b"four")
    assert read(f"{d}/f") == b"onetfour"


def case_writers_never_overlap(d):
    """Four processes, 200 records each, of sizes that cross units and leave inline behind: each record whole, once."""
    children = []
    for child in range(4):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                with opened(f"{d}/log", APPEND) as fd:
                    for n in range(200):
                        record = f"{child} {n:03} ".encode() + b"abcd"[child:child + 1] * (10 + n * 3) + b"\n"
                        assert os.write(fd, record) == len(record)
                code = 0
            finally:
                os._exit(code)
        children.append(pid)
    assert all(os.waitpid(pid, 0)[1] == 0 for pid in children)
    seen = set()
    for line in read(f"{d}/log").splitlines():
        child, number, body = line.split(b" ")
        assert body == b"abcd"[int(child):int(child) + 1] * (10 + int(number) * 3), line[:40]
        seen.add((child, number))
    assert len(seen) == 800


def case_flag_can_be_set_later(d):
    """F_SETFL turns it on and off."""
    write(f"{d}/f", b"0123456789")
    with opened(f"{d}/f", os.O_WRONLY) as fd:
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_APPEND)
        os.write(fd, b"end")
        fcntl.fcntl(fd, fcntl.F_SETFL, flags)
        os.pwrite(fd, b"S", 0)
    assert read(f"{d}/f") == b"S123456789end"


def case_position_after_append(d):
    """It is the end of what was written."""
    write(f"{d}/f", b"12345")
    with opened(f"{d}/f", os.O_RDWR | os.O_APPEND) as fd:
        assert os.read(fd, 2) == b"12"
        os.write(fd, b"67")
        assert os.lseek(fd, 0, os.SEEK_CUR) == 7 and os.read(fd, 1) == b""
