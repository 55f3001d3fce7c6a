"""Linear algebra of NumPy and SciPy that does not wait for processors that others hold."""

import concurrent.futures
import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import threadpoolctl

_MOST = 4  # calls at a time: each may hold a few tables of all pairs of samples


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """A context, and a decorator, in which NumPy and SciPy compute with one thread.

    OpenBLAS's threads wait for one another by spinning. Where something else holds a processor, a
    training that goes on beside, say, small matrices then take many times as long; and what
    one thread gives does not depend on how many there are.

    Example:

    >>> import numpy as np
    >>> with one_thread():
    ...     float(np.linalg.slogdet(np.eye(300))[1])
    0.0
    """
    with _controller().limit(limits=1, user_api="blas"):
        yield


def in_threads(function: Callable[..., Any], *rows: Iterable[Any]) -> list[Any]:
    """What `map` gives, several calls side by side, each of which computes with one thread.

    Example:

    >>> in_threads(divmod, [7, 8], [2, 3])
    [(3, 1), (2, 2)]
    """
    workers = min(_MOST, os.cpu_count() or 1)
    with one_thread(), concurrent.futures.ThreadPoolExecutor(workers) as pool:
        return list(pool.map(function, *rows))


@functools.cache
def _controller() -> threadpoolctl.ThreadpoolController:
    import scipy.linalg  # noqa: F401  # its library is to be among those that are found

    return threadpoolctl.ThreadpoolController()
