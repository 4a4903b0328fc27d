"""What every command imports first: from here on Ctrl-C ends it in one line, also while it still imports."""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType

_shown = sys.excepthook


def _show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        # Python itself then ends the process by SIGINT, which is what a shell asks for.
        file = Path(sys.argv[0])
        print(f"{file.parent.name if file.stem == '__main__' else file.stem}: stopped", file=sys.stderr)
    else:
        _shown(kind, error, trace)


sys.excepthook = _show
