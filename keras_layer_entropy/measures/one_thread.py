"""Linear algebra of NumPy and SciPy that does not wait for processors that others hold."""

import contextlib
import functools
from collections.abc import Iterator

import threadpoolctl


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


@functools.cache
def _controller() -> threadpoolctl.ThreadpoolController:
    import scipy.linalg  # noqa: F401  # its library is to be among those that are found

    return threadpoolctl.ThreadpoolController()
