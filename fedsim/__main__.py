"""The command line's way in, and ``python -m fedsim``: whatever comes while it is imported ends it in one line too."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line."""
    try:
        from fedsim.cli import main
    except KeyboardInterrupt:
        print("fedsim: interrupted.", file=sys.stderr)
        sys.exit(130)
    main()


if __name__ == "__main__":
    main()
