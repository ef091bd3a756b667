"""Measuring a running server with the clients that it is made for."""
