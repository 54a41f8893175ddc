"""``batchrun``, and ``python -m batchrun``."""

from __future__ import annotations

import os
import signal


def main() -> None:
    """Load the command line; Ctrl-C while it loads leaves without a word."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))
    from batchrun.cli import main

    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    main()


if __name__ == "__main__":
    main()
