"""Errors of the operating system: which of them mean a full disk, and what to do about each."""

from __future__ import annotations

import errno

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
"""A disk takes no more: no room, a quota, too large a file, or only to be read."""

REMEDIES = {
    errno.ENOSPC: "make room, or name a folder on another disk",
    errno.EDQUOT: "make room below your quota, or name a folder on another disk",
    errno.EFBIG: "name a folder on a disk that takes larger files",
    errno.EROFS: "name a folder on a disk that can be written",
    errno.EACCES: "change the permissions, or name another folder",
    errno.EPERM: "change the permissions, or name another folder",
    errno.EMFILE: "raise the limit of open files with ulimit -n, or lower --workers",
    errno.ENFILE: "close other programs, or raise the system's limit of open files",
    errno.ENOMEM: "free memory of other programs, or lower --batch-size",
    errno.EIO: "check the disk or the network drive that it lies on",
    errno.ESTALE: "mount the network drive again",
}
"""What to do, by number of the error."""
