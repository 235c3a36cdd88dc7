"""A script in a process of its own, in which nothing may import what only exports need."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from typing import Any

__all__ = ["run_torch_free"]

# "ban" refuses the imports, "have" only tells afterwards that there were none: a machine without
# torch, and one that has it.
FRAME = """
import sys

BANNED = {{"torch", "onnx", "onnxscript", "onnx_ir", "transformers", "filelock", "huggingface_hub"}}

class Ban:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BANNED:
            raise ImportError(f"{{name}} must not be imported")

if sys.argv.pop(1) == "ban":
    sys.meta_path.insert(0, Ban())
{script}
assert not BANNED & set(sys.modules), BANNED & set(sys.modules)
"""


def run_torch_free(script: str, installed: str, *arguments: Any, **options: Any) -> None:
    """Run a script with arguments, and assert that it succeeds and writes no error.

    Args:
        script: of Python, which may read sys.argv[1:].
        installed: "ban" or "have".
        arguments: of the script.
        options: of subprocess.run.
    """
    code = FRAME.format(script=textwrap.dedent(script))
    command = [sys.executable, "-c", code, installed, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert (done.returncode, done.stderr) == (0, "")
