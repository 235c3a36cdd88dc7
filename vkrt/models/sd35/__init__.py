"""Stable Diffusion 3.5 in plain PyTorch: one noun a file; stages.py says what runs."""
