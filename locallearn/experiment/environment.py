"""What is passed on to processes that a command starts."""

from __future__ import annotations

import os


def use_data(folder: str | None) -> None:
    """Where published data sets are looked for, in this process and in those that it starts."""
    if folder:
        os.environ["LOCALLEARN_DATA"] = folder
