"""Locks of files by the system: they end with their process, however that ends.

``flock``, which Linux sends on to the server of an NFS; Windows and some file systems have none.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)


def lock(path: Path, *, wait: bool) -> int:
    """Open and lock a file, which is made if it is not there; its descriptor, whose closing ends the lock.

    Raises:
        BlockingIOError: If another has the lock, and this one does not ``wait``.
        OSError: If the file cannot be opened; with a number of ``NO_LOCKS`` where there are no locks at all.
    """
    if fcntl is None:
        raise OSError(errno.ENOSYS, "no locks")
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            # Who has it may remove the file. Whoever had opened it before then holds a lock that nobody else sees.
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                return descriptor
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Whether another has locked a file; of one that is not there nobody has."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False
