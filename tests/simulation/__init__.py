"""A simulation of servers and clients over one log, driven by a seed: ARCHITECTURE.md tells how."""
