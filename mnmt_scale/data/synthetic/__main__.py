"""``python -m mnmt_scale.data.synthetic SETTINGS.toml OUT_DIR [key=value ...]``: writes constructed languages."""

from __future__ import annotations

import sys

from ... import settings
from ...errors import MnmtError
from . import SyntheticConfig, generate


def main(arguments: list[str]) -> int:
    """Settings file and output directory from the command line; writes the corpus and says what it is."""
    if len(arguments) < 2 or arguments[0].startswith("-"):
        print(__doc__)
        return 2
    try:
        truth = generate(settings.load(SyntheticConfig, arguments[0], arguments[2:]), arguments[1])
    except MnmtError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(f"{arguments[1]}: {len(truth.languages)} languages, {sum(truth.sizes.values())} training pairs")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
