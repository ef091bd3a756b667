"""The command line: click commands over the package chatsvc, in which this is chatsvc.cli."""
