"""One run at a time for each place that is written to."""

import contextlib
import errno
import os
import pathlib
import warnings

from keras_layer_entropy.files import check_writable, local_path

# Longer than any name that `files.replacing` gives: where it fits, they do.
_SUFFIX = ".in-use-by-another-run.lock"


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
    lock = path.with_name(f".{path.name}{_SUFFIX}")
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
