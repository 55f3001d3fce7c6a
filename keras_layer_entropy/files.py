"""Write a file or a folder whole or not at all."""

import contextlib
import os
import pathlib
import shutil
import uuid


@contextlib.contextmanager
def replacing(path):
    """A temporary path beside `path` to write a file or a folder to; it becomes `path` at the end.

    Until the block ends without an exception `path` keeps what it held; after one, nothing is
    left behind. An existing file is replaced in one step (`os.replace`); an existing folder is
    moved aside first and removed last.

    Args:
        path: the file or folder to write; its parent is created.

    Yields:
        `pathlib.Path`, not existing yet, with the suffix of `path`.

    Example:

    >>> import tempfile
    >>> target = pathlib.Path(tempfile.mkdtemp()) / "a" / "notes.txt"
    >>> with replacing(target) as temporary:
    ...     _ = temporary.write_text("whole")
    >>> target.read_text(), [child.name for child in target.parent.iterdir()]
    ('whole', ['notes.txt'])
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unique = uuid.uuid4().hex[:8]
    temporary = path.with_name(f".{path.stem}.{unique}{path.suffix}")
    aside = path.with_name(f".{path.stem}.{unique}.old")
    try:
        yield temporary
        _flush(temporary)
        if path.is_dir():
            os.replace(path, aside)
            try:
                os.replace(temporary, path)
            except OSError:
                os.replace(aside, path)
                raise
        else:
            os.replace(temporary, path)
    finally:
        for leftover in (temporary, aside):
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink(missing_ok=True)


def _flush(path):
    """Sends a file, or every file in a folder, to the disk, so that a rename never outruns it."""
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    for file in files:
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())
