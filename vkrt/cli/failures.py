"""What went wrong, in one line; None where only a bug explains it."""

from __future__ import annotations

from vkrt.cli.memory_limits import is_out_of_memory
from vkrt.errors import VkrtError

__all__ = ["BAD_INPUT", "INTERRUPTED", "SIGNALLED", "explain"]

BAD_INPUT = 2
INTERRUPTED = 130
# The number of a signal is added, as shells do.
SIGNALLED = 128

# Which extra brings a package that the base install lacks.
EXTRAS = {
    "torch": "torch",
    "onnx": "torch",
    "onnxscript": "torch",
    "onnxruntime": "cpu",
    "openvino": "openvino",
    "huggingface_hub": "hub",
    "av": "video",
    "tokenizers": "generate",
    "skimage": "demo",
    "transformers": "bench",
}


def explain(error: Exception) -> str | None:
    """Return one line on an error that the input or the machine caused, None for any other."""
    if isinstance(error, VkrtError):
        return one_line(str(error))
    if hasattr(error, "format_message"):
        # The usage errors of the argument parser, whose class differs between typer's versions.
        context = getattr(error, "ctx", None)
        path = context.command_path if context else "vkrt"
        return one_line(f"{error.format_message().rstrip('.')}. See `{path} --help`.")
    if isinstance(error, ModuleNotFoundError):
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        return f"{error.name} is not installed; run pip install 'vkrt[{extra}]'" if extra else None
    if is_out_of_memory(error):
        return "out of memory; take a smaller model, a smaller --image-size or --device cpu"
    if isinstance(error, OSError) and error.strerror:
        return one_line(f"{error.strerror}: {error.filename}" if error.filename else error.strerror)
    return None


def one_line(text: str) -> str:
    """Return the text with every run of blanks and line ends as one blank."""
    return " ".join(text.split())
