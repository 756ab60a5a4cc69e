"""What the start of a worker costs: `python benchmarks/worker_start.py`.

"fresh" is a new Python that loads what a worker loads; "forked" is how workers start, the first one and the
next ones. Seconds by the clock, and of a core.
"""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

from transfer_bo.runners import forkserver

IMPORTS = "import " + ", ".join(name for name in forkserver._LOADED if not name.startswith("psycopg"))


def begin(says: Any) -> None:
    """In the worker: load what it needs, and say what that took of a core."""
    exec(IMPORTS)
    says.send(time.process_time())


def main() -> None:
    """The command line."""
    started = time.perf_counter()
    code = f"{IMPORTS}\nimport time; print(time.process_time())"
    core = float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    print(f"fresh          {time.perf_counter() - started:6.2f} s  {core:6.2f} s of a core")
    forkserver.prepare()
    for number in range(1, 4):
        started = time.perf_counter()
        heard, says = forkserver._CONTEXT.Pipe(duplex=False)
        process = forkserver._CONTEXT.Process(target=begin, args=(says,))
        process.start()
        core = heard.recv()
        print(f"forked, no. {number}  {time.perf_counter() - started:6.2f} s  {core:6.2f} s of a core")
        process.join()


if __name__ == "__main__":
    main()
