"""`python -m vkrt.cli` is `vkrt`."""

from __future__ import annotations

import sys

from vkrt.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
