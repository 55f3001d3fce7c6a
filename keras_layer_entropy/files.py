"""Paths on this machine; a file or a folder written whole or not at all."""

import contextlib
import glob
import os
import pathlib
import re
import shutil
import uuid

# `pathlib` makes one slash of two; one letter is a drive of Windows.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def local_path(path):
    """A path on this machine; a leading `~` is the home directory.

    Args:
        path: text or `os.PathLike`.

    Returns:
        `pathlib.Path`.

    Raises:
        ValueError: it is a URL, of a cloud's storage say, or no path at all.

    Example:

    >>> local_path("gs://bucket/model.keras")
    Traceback (most recent call last):
    ValueError: 'gs://bucket/model.keras' is a URL; expected a path on this machine: copy ...
    """
    if isinstance(path, bytes) or not isinstance(path, str | os.PathLike):
        raise ValueError(f"{path!r} is a {type(path).__name__}; expected a path, as text.")
    text = os.fspath(path)
    if isinstance(text, bytes):
        text = os.fsdecode(text)
    if not text.strip():
        raise ValueError(f"The path is empty ({text!r}); expected the name of a file or folder.")
    if "\0" in text:
        raise ValueError(f"The path {text!r} holds a NUL character, which no name may hold.")
    if text.lower().startswith("file:/"):
        raise ValueError(f"{text!r} is a URL; expected a path: leave out 'file://'.")
    if _SCHEME.match(text):
        raise ValueError(
            f"{text!r} is a URL; expected a path on this machine: copy what is there to a local "
            "folder, or mount it, and name that. To write there, write to a local folder and copy."
        )
    return pathlib.Path(os.path.expanduser(text))


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
    path = local_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unique = uuid.uuid4().hex[:8]
    temporary = path.with_name(f".{path.stem}.{unique}{path.suffix}")
    aside = path.with_name(f".{path.name}.{unique}.old")
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
            _remove(leftover)


def recover(path):
    """Cleans up after a process that was killed in `replacing(path)`.

    What it had moved aside comes back where nothing took its place; what is half-written goes. Not
    for a path that another process is writing to now.

    Args:
        path: as for `replacing`.

    Returns:
        List of the paths that were removed.

    Example:

    >>> import tempfile
    >>> target = pathlib.Path(tempfile.mkdtemp()) / "notes.txt"
    >>> _ = target.with_name(".notes.0123abcd.txt").write_text("ha")
    >>> [path.name for path in recover(target)]
    ['.notes.0123abcd.txt']
    """
    path = local_path(path)
    unique = "[0-9a-f]" * 8
    for aside in path.parent.glob(f".{glob.escape(path.name)}.{unique}.old"):
        if not path.exists():
            os.replace(aside, path)
    stem, suffix = glob.escape(path.stem), glob.escape(path.suffix)
    names = [f".{glob.escape(path.name)}.{unique}.old", f".{stem}.{unique}{suffix}"]
    names += [f"..{stem}.{unique}.{unique}{suffix}"]  # of a `replacing` inside another
    found = [leftover for name in names for leftover in path.parent.glob(name)]
    for leftover in found:
        _remove(leftover)
    return found


def _remove(path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _flush(path):
    """Sends a file, or every file in a folder, to the disk, so that a rename never outruns it."""
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    for file in files:
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())
