"""``python -m mnmt_scale`` is ``mnmt``; it drops the ``--local_rank`` that the deepspeed launcher puts before the verb."""

from __future__ import annotations

import sys


def drop_local_rank(arguments: list[str]) -> list[str]:
    """Arguments without a leading ``--local_rank=N`` or ``--local_rank N`` (the environment carries it as well)."""
    if arguments and arguments[0].startswith(("--local_rank=", "--local-rank=")):
        return arguments[1:]
    if arguments and arguments[0] in ("--local_rank", "--local-rank"):
        return arguments[2:]
    return arguments


if __name__ == "__main__":
    sys.argv[1:] = drop_local_rank(sys.argv[1:])
    from .cli.main import main

    main()
