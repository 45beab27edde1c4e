"""An error in a worker that ends the whole run, in a form that can be sent to the parent process."""

from __future__ import annotations

from cgverify.common.errors import CgverifyError
from cgverify.common.printable import message_of


def worker_error(error: Exception) -> CgverifyError:
    """Return an error with the same message and exit code. Unlike its subclasses, a CgverifyError can be pickled."""
    if not isinstance(error, CgverifyError):
        return CgverifyError(f"{type(error).__name__}: {message_of(error)}")
    sent = CgverifyError(str(error))
    sent.exit_code = error.exit_code
    return sent
