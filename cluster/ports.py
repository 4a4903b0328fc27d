"""A port, as an option of a command names it."""

from __future__ import annotations

import argparse

LAST_PORT = 65_535


def port_of(text: str) -> int:
    """The number of a port; 0 for any that is free.

    Raises:
        argparse.ArgumentTypeError: it is no port.
    """
    if not text.isdecimal() or int(text) > LAST_PORT:
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted a port: 0 to {LAST_PORT}")
    return int(text)
