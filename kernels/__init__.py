"""Custom kernels, one folder an operation: installed as vkrt.kernels."""
