"""How a job ends: with one sentence, and an exit code that says which kind of end it was."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from l2t_ray.interfaces import DivergenceError, FailureLimitError, StoppedError, UserError
from l2t_ray.masking import masked


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turns what stops a run into one sentence and an exit code: 1 too many lost parts, 2 a user's mistake,
    3 divergence, 130 a signal."""
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {masked(str(message))}", flush=True)
    try:
        yield
    except UserError as error:
        raise SystemExit(_said(f"error: {error}", 2)) from None
    except FailureLimitError as error:
        raise SystemExit(_said(f"failed: {error}", 1)) from None
    except DivergenceError as error:
        raise SystemExit(_said(f"diverged: {error}", 3)) from None
    except StoppedError as stopped:
        raise SystemExit(_said(f"{stopped}", 130)) from None
    except KeyboardInterrupt:
        raise SystemExit(_said("stopped before the run began.", 130)) from None


def _said(text: str, code: int) -> int:
    print(masked(text), file=sys.stderr, flush=True)
    return code
