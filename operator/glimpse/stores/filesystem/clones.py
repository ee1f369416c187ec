"""An object made of another one, without its bytes being read: a reflink, or a second name of the same file.

Objects are written once and removed by their name, so two of them may be one file: neither can tell.
"""

import errno
import fcntl
import os
from contextlib import ExitStack
from typing import Final

from glimpse.stores.filesystem.attempts import DATA, Attempt
from glimpse.stores.filesystem.files import open_file

_FICLONE: Final = 0x40049409
"""ioctl_ficlone(2)."""
_NO_REFLINK: Final = frozenset({errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV, errno.ENOSYS})
_NO_LINK: Final = frozenset({errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP, errno.EXDEV, errno.ENOSYS})
_LINK: Final = "linked"


def clone(stack: ExitStack, source: int, ours: Attempt) -> int | None:
    """Give our attempt the data of the object in the folder `source`.

    A descriptor of the data, closed by `stack`, which keeps our attempt alive; None: this file system cannot do it,
    and the attempt is as it was. Raises OSError, FileNotFoundError if there are no data.
    """
    data = open_file(source, DATA)
    stack.callback(os.close, data)
    try:
        fcntl.ioctl(ours.data, _FICLONE, data)
    except OSError as error:
        if error.errno not in _NO_REFLINK:
            raise
    else:
        os.fsync(ours.data)
        return ours.data
    # Our lock is on the file that we replace, and a file without one is taken for the dead's: so hold one here too.
    fcntl.flock(data, fcntl.LOCK_SH)
    try:
        os.link(DATA, _LINK, src_dir_fd=source, dst_dir_fd=ours.folder, follow_symlinks=False)
    except OSError as error:
        if error.errno in _NO_LINK:
            return None
        raise
    os.rename(_LINK, DATA, src_dir_fd=ours.folder, dst_dir_fd=ours.folder)
    return data
