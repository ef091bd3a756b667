"""Where the program begins: `chatsvc`, and `python -m chatsvc.cli`."""

import os
import signal


def run() -> None:
    """Runs the command line, and ends the process with its exit code."""
    # The imports take a moment, in which Ctrl-C must not print a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # gRPC's core would write lines of its own to stderr, for a port that is taken for instance.
    # What matters reaches us as an exception.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from .main import main

    main()


if __name__ == "__main__":
    run()
