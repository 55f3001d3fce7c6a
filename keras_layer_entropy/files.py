"""Paths on this machine; a file or folder written whole or not at all, by one run at a time."""

import contextlib
import errno
import glob
import os
import pathlib
import re
import shutil
import stat
import tempfile
import uuid
import warnings

# `pathlib` makes one slash of two; one letter is a drive of Windows.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
# Longer than any name that `replacing` gives: where it fits, they do.
_LOCK = ".in-use-by-another-run.lock"

# What `local_path` takes.
AnyPath = str | os.PathLike[str]


def local_path(path: AnyPath) -> pathlib.Path:
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


def check_writable(path):
    """Raises OSError where `replacing(path)` could not write, before anything is computed.

    Args:
        path: a file or a folder, existing or not.
    """
    path = _target(path)
    if path.is_symlink() or (path.exists() and not path.is_file() and not path.is_dir()):
        raise OSError(f"{path} is neither a file nor a folder: choose another path.")
    parent = next(folder for folder in path.parents if os.path.lexists(folder))
    if not parent.is_dir():
        raise NotADirectoryError(f"{path} cannot be written: {parent} is no folder.")
    for folder in (parent, path) if path.is_dir() else (parent,):
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            problem = f"{path} cannot be written: nothing can be written to {folder}"
            raise type(error)(f"{problem} ({error.strerror}).") from error


def _target(path):
    """What is written: what a link points to, not the link."""
    return pathlib.Path(os.path.realpath(local_path(path)))


@contextlib.contextmanager
def replacing(path, own=()):
    """A temporary path beside `path` to write a file or a folder to; it becomes `path` at the end.

    Until the block ends without an exception `path` keeps what it held; after one, nothing is
    left behind. An existing file is replaced in one step (`os.replace`); an existing folder is
    moved aside first and removed last. Permissions and group stay as they were, and so does, in
    a folder, everything that is neither written anew nor named in `own`.

    Args:
        path: the file or folder to write; its parent is created. Of a link, what it points to.
        own: what goes from an existing folder besides what is written anew: names of files and
            folders relative to it.

    Yields:
        `pathlib.Path`, not existing yet, with the suffix of `path`.

    Raises:
        OSError: it cannot be written, or a file would take the place of a folder or a folder that
            of a file.

    Example:

    >>> target = pathlib.Path(tempfile.mkdtemp()) / "a" / "notes.txt"
    >>> with replacing(target) as temporary:
    ...     _ = temporary.write_text("whole")
    >>> target.read_text(), [child.name for child in target.parent.iterdir()]
    ('whole', ['notes.txt'])
    """
    check_writable(path)
    path = _target(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unique = uuid.uuid4().hex[:8]
    temporary = path.with_name(f".{path.stem}.{unique}{path.suffix}")
    aside = path.with_name(f".{path.name}.{unique}.old")
    try:
        yield temporary
        _flush(temporary)
        _check_kinds(path, temporary)
        if path.is_dir():
            _keep(path, temporary, own)
            _like(path, temporary)
            _swap(path, temporary, aside)
            _keep(aside, path, own)  # what came since
        else:
            _like(path, temporary)
            os.replace(temporary, path)
    finally:
        for leftover in (temporary, aside):
            _remove(leftover)


def _check_kinds(path, temporary):
    if path.is_dir() and not temporary.is_dir():
        raise IsADirectoryError(f"{path} is a folder; expected the name of a file.")
    if path.is_file() and temporary.is_dir():
        raise NotADirectoryError(f"{path} is a file; expected the name of a folder.")


def _swap(path, temporary, aside):
    os.replace(path, aside)
    try:
        os.replace(temporary, path)
    except OSError:
        os.replace(aside, path)
        raise


def _keep(folder, new, own):
    """Puts what is in a folder and not its `own` into the new one, too: no copy, the same files."""
    own = {pathlib.PurePath(name) for name in own}
    for item in sorted(folder.rglob("*")):
        name = item.relative_to(folder)
        is_folder = item.is_dir() and not item.is_symlink()
        if own & {name, *name.parents} or os.path.lexists(new / name):
            continue
        if is_folder and any(item.iterdir()):
            continue  # made with the first of its files that stays
        (new / name).parent.mkdir(parents=True, exist_ok=True)
        if is_folder:
            (new / name).mkdir()
            continue
        try:
            os.link(item, new / name, follow_symlinks=False)
        except OSError:  # a file system without links
            shutil.copy2(item, new / name, follow_symlinks=False)


def _like(path, new):
    """Gives a file or folder, and what is in it, permissions and group of what it replaces."""
    for item in [new, *new.rglob("*")] if new.is_dir() else [new]:
        old = path / item.relative_to(new)
        if item.is_symlink() or old.is_symlink() or not old.exists() or old.samefile(item):
            continue
        status = old.stat()
        for owner in (status.st_uid, -1) if hasattr(os, "chown") else ():  # -1: who writes it
            with contextlib.suppress(PermissionError):
                os.chown(item, owner, status.st_gid)
                break
        item.chmod(stat.S_IMODE(status.st_mode))


def recover(path):
    """Cleans up after a process that was killed in `replacing(path)`.

    What it had moved aside comes back where nothing took its place; what is half-written goes. Not
    for a path that another process is writing to now.

    Args:
        path: as for `replacing`.

    Returns:
        List of the paths that were removed.

    Example:

    >>> target = pathlib.Path(tempfile.mkdtemp()) / "notes.txt"
    >>> _ = target.with_name(".notes.0123abcd.txt").write_text("ha")
    >>> [path.name for path in recover(target)]
    ['.notes.0123abcd.txt']
    """
    path = _target(path)
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


def remove(folder, own):
    """Removes what is its `own` from a folder, and what is empty then, the folder itself too.

    Args:
        folder: an existing folder.
        own: names of files and folders relative to it.

    Example:

    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> for name in ("model", "notes"):
    ...     _ = (folder / name).write_text("")
    >>> remove(folder, ["model"])
    >>> os.listdir(folder)
    ['notes']
    """
    folder = local_path(folder)
    for name in own:
        _remove(folder / name)
    folders = [item for item in folder.rglob("*") if item.is_dir() and not item.is_symlink()]
    for inside in (*sorted(folders, reverse=True), folder):
        with contextlib.suppress(OSError):  # not empty
            inside.rmdir()


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


@contextlib.contextmanager
def claimed(path):
    """While the block runs, `path` can be written to, and nobody else who asks may.

    A lock of the operating system on a file beside it, `.NAME.in-use-by-another-run.lock`: it ends
    with the process that holds it, however that ends. Runs on other machines that share the folder
    are seen where its file system hands locks on, as NFS does.

    Args:
        path: a file or a folder, existing or not. Of a link, what it points to.

    Raises:
        BlockingIOError: somebody else has claimed it.
        OSError: it cannot be written to.

    Example:

    >>> import tempfile
    >>> target = pathlib.Path(tempfile.mkdtemp()) / "report.html"
    >>> with claimed(target), claimed(target):
    ...     pass
    Traceback (most recent call last):
    BlockingIOError: Another run is writing to .../report.html: wait for its end, or ...
    """
    path = pathlib.Path(os.path.realpath(local_path(path)))
    check_writable(path)
    made = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}{_LOCK}")
    try:
        with _locked(lock, path):
            yield
    finally:
        for folder in made:
            with contextlib.suppress(OSError):  # it holds what was written
                folder.rmdir()


@contextlib.contextmanager
def _locked(lock, path):
    while True:
        try:
            handle = open(lock, "a")  # noqa: SIM115
        except OSError as error:
            raise type(error)(f"{path} cannot be written: {error.strerror}.") from error
        with handle:
            _take(handle, path)
            # Whoever had it may have taken the file away after it was opened here.
            if not os.path.exists(lock) or not os.path.samestat(
                os.fstat(handle.fileno()), os.stat(lock)
            ):
                continue
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return


def _take(handle, path):
    import fcntl  # not on every system, and only runs that write need it

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BlockingIOError(
            f"Another run is writing to {path}: wait for its end, or choose another place."
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        warnings.warn(
            f"The file system of {path} has no locks: see to it that no other run writes there.",
            stacklevel=2,
        )
