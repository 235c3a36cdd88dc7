"""`python -m vkrt.export`: the same as `vkrt export`."""

from __future__ import annotations

import sys

from vkrt.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
