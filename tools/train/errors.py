"""Errors that a person can act on: one line, naming the file, field and value."""
from __future__ import annotations

import sys
from pathlib import Path
from typing import Callable


class ToolError(Exception):
    """A problem with the input or the settings; its text is shown as one line, without a traceback."""


def require_file(path: Path, how_to_get: str) -> Path:
    """Return `path` if it exists; otherwise raise with the way to get it."""
    if not path.exists():
        raise ToolError(f"{path}: not found; {how_to_get}")
    return path


def run_main(main: Callable[[], None]) -> None:
    """Run a command-line tool; a ToolError ends it with status 2 and one line on standard error."""
    try:
        main()
    except ToolError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
