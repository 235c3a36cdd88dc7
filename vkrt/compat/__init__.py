"""The public names of other packages, over vkrt's engines.

`vkrt.compat.install()` lets `import sam2` of any code find them.
"""

from __future__ import annotations

from vkrt.compat.finder import install, uninstall

__all__ = ["install", "uninstall"]
