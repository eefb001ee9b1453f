"""The job of Ray's whose command this process is, and how it ends where beginning it again would be of no use.

KubeRay begins a RayJob that failed again, each time with a new cluster, up to its ``backoffLimit`` and whatever the
exit status was. A job that was stopped it takes for complete. So with DIFFMM_STOP_JOB=1 a command that would only fail
again stops the job that it is.
"""

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from diffmm_dist.statuses import DONE, MISTAKE, again_may_help

# Ray and the command line are imported when they are needed: this is there before anything large is loaded.

VARIABLE = "DIFFMM_STOP_JOB"
_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
_WITHIN_S = 60.0


@contextmanager
def stopped_where_final() -> Iterator[None]:
    """Where that is asked for, stop this process's own job if the command in the block ends with a final failure."""
    job = _own_job()
    if os.environ.get(VARIABLE) != "1" or job is None:
        yield
        return
    try:
        yield
    except SystemExit as ended:
        _stop(job, _status(ended))
        raise
    except Exception:
        traceback.print_exc()  # now, since stopping the job ends this process
        _stop(job, MISTAKE)
        raise


def _own_job() -> str | None:
    """Return the name by which Ray knows the job whose command this is, None outside of jobs."""
    try:
        name = json.loads(os.environ[_JOB])["metadata"]["job_submission_id"]
    except (KeyError, TypeError, ValueError):
        return None
    return str(name)


def _status(ended: SystemExit) -> int:
    if ended.code is None:
        return DONE
    return ended.code if isinstance(ended.code, int) else MISTAKE


def _stop(job: str, status: int) -> None:
    if status == DONE or again_may_help(status):
        return
    print(f"exit status {status}, which the same command cannot mend: the job is stopped", file=sys.stderr, flush=True)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # by which Ray ends this process
    try:
        from ray.job_submission import JobSubmissionClient

        JobSubmissionClient().stop_job(job)
    except Exception as error:  # of Ray's many kinds; the job ends as a failed one then
        print(f"the job could not be stopped: {error}", file=sys.stderr)
    else:
        time.sleep(_WITHIN_S)
