"""Check before training that all machines train the same run, in the same run folder."""

from __future__ import annotations

import socket
import time
from pathlib import Path

from llm_qa import files
from llm_qa.console import UserError
from llm_qa.distributed import all_gather, run_on_main
from llm_qa.language import tr
from llm_qa.training.run_signature import differences

PATIENCE_SECONDS = 60.0  # NFS may cache for half a minute that a folder does not exist


def check_ranks_agree(run_dir: str | Path, signature: dict, patience_seconds: float = PATIENCE_SECONDS) -> None:
    """Raise UserError where a machine's run differs from the first machine's, or it does not see that one's run folder.

    Every rank must call it. A network disk may show a new folder late, hence the patience.
    """
    path = Path(run_dir) / files.ENVIRONMENT
    first, written_ns = run_on_main(lambda: (signature, path.stat().st_mtime_ns))
    problem = "; ".join(word for words in differences(first, signature).values() for word in words)
    deadline = time.monotonic() + patience_seconds
    while not problem and not (path.is_file() and path.stat().st_mtime_ns == written_ns):
        if time.monotonic() >= deadline:
            problem = tr("it does not see {run_dir} as the first machine does", run_dir=run_dir)
        time.sleep(0.2)
    told = all_gather(f"{socket.gethostname()} ({problem})" if problem else "")
    if others := list(dict.fromkeys(one for one in told if one)):
        raise UserError(
            tr(
                "The machines do not agree: {others}. Give all of them the same recipe and --data, "
                "and put --run on a disk that they share.",
                others=", ".join(others),
            )
        )
