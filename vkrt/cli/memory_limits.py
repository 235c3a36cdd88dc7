"""Too little memory, told in one line: before numpy needs it, and whoever ran out of it."""

from __future__ import annotations

from vkrt.errors import BackendError

__all__ = ["check_address_space", "is_out_of_memory"]

# Below it numpy's own library ends the process, which nothing can catch.
LEAST_ADDRESS_SPACE = 256 * 1024**2
# How the system, C++, PyTorch and ONNX Runtime say that there is no memory left; none of the last
# two raises MemoryError.
PHRASES = (
    "cannot allocate memory",
    "can't allocate memory",
    "failed to allocate memory",
    "failed to map segment",
    "bad_alloc",
    "bfc_arena",
    "can't start new thread",
    "not enough memory",
    "out of memory",
)


def check_address_space() -> None:
    """Refuse to begin in an address space that even numpy is too large for.

    Raises:
        BackendError: `ulimit -v` is too low.
    """
    try:
        import resource
    except ImportError:
        # Windows has no such limit.
        return
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY and limit < LEAST_ADDRESS_SPACE:
        raise BackendError(
            f"this process may use {limit / 1024**2:.0f} MiB of address space, too little for any "
            "model: raise `ulimit -v`"
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error of any library says that there is no memory left."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    system = isinstance(error, ImportError | OSError | RuntimeError)
    # ONNX Runtime's errors are of RuntimeError or, by its version, of Exception itself.
    foreign = type(error).__module__.startswith("onnxruntime")
    return (system or foreign) and any(phrase in text for phrase in PHRASES)
