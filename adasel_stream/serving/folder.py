"""The folder that serving processes and their trainer share."""

import os
from pathlib import Path

__all__ = ["make_folder"]


def make_folder(folder: str | os.PathLike[str]) -> Path:
    """Make sure that a serving folder is there, and return its absolute path.

    A process may change its working directory later.

    Raises:
        NotADirectoryError: if a file is where the folder or one above it should be.
        OSError: if it cannot be created.

    >>> make_folder(__file__)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    NotADirectoryError: '...folder.py' is no folder, nor can it be made one: pass the folder ...
    """
    path = Path(os.path.abspath(folder))
    try:
        os.makedirs(path, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise NotADirectoryError(
            f"{str(path)!r} is no folder, nor can it be made one: pass the folder in which serving "
            "processes write their losses, or a new path"
        ) from error
    return path
