"""Generated from protos/chat.proto by `tox -e protos -- --write`; never edited."""
