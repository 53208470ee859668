"""Entry point of ``python -m rsrefseg`` and of the console script. Ctrl-C prints one line and exits with code 130."""

import signal
import sys


def main() -> None:
    """Run the command line."""
    try:
        try:
            from .cli import main as run
        except ImportError as error:
            package = (error.name or "typer").partition(".")[0]
            reason = f"the package '{package}' is missing or broken ({error})"
            print(f"rsrefseg: {reason}: `pip install --force-reinstall {package}`", file=sys.stderr)
            sys.exit(2)
        run()
    except KeyboardInterrupt:
        print("rsrefseg: interrupted", file=sys.stderr)
        sys.exit(130)
    finally:
        # No handler is left to report a later Ctrl-C in one line: let it end the process.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    main()
