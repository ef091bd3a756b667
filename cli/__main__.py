"""`python -m chatsvc.cli` is `chatsvc`."""

from .main import main

main()
