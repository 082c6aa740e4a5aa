"""A home folder and a user name where the system has none.

In a container the user is often a bare number: no ``HOME``, and no entry in the system's list of
users. Python and the libraries below dimefm ask for both when they are imported.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

NAMES = ("LOGNAME", "USER", "LNAME", "USERNAME")  # where Python looks for the name of the user


def ensure_home() -> None:
    """Set ``HOME`` and ``USER`` of this process where they are not set and the system knows none.

    The home is then ``dimefm-UID`` in the folder for temporary files, which belongs to this user
    alone; models that are downloaded go there.
    """
    if not hasattr(os, "getuid"):  # Windows, which always has both
        return
    home = _home_in_list()
    if not os.environ.get("HOME"):
        if home is None:
            os.environ["HOME"] = str(_temporary_home())
        elif "HOME" in os.environ:
            os.environ["HOME"] = home
    if home is None and not any(os.environ.get(name) for name in NAMES):
        os.environ["USER"] = f"uid-{os.getuid()}"


def _home_in_list() -> str | None:
    """Return the home of this user in the system's list of users, None for a bare number."""
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return None


def _temporary_home() -> Path:
    """Return a folder that belongs to this user alone; a folder of somebody else is not used."""
    try:
        folder = Path(tempfile.gettempdir()) / f"dimefm-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid():
            folder.chmod(0o700)
            return folder
    except OSError:  # no folder for temporary files, or it is full
        return Path(os.sep)
    return Path(tempfile.mkdtemp(prefix="dimefm-"))
