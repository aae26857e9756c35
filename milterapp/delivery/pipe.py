"""What pipe(8) executes for each message: the client beside it, in its compiled form where there is one.

Must never: do more than that (what stands here is compiled for each message; `client` took 2 of 10 ms so), or end with
a status that bounces.
"""

import posix
import sys


def start() -> None:
    """Load the client and run it; it ends the process."""
    try:
        from _frozen_importlib_external import SourceFileLoader

        client = type(sys)("client")
        SourceFileLoader("client", __file__.rpartition("/")[0] + "/client.py").exec_module(client)
        client.main()
    finally:
        posix._exit(75)  # noqa: SLF001 - what os._exit is


if __name__ == "__main__":
    start()
