"""``python -m rsrefseg``: the command line."""

from .cli import main

main()
