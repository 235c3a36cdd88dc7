"""Benchmarks: speed against peers and quality on held-out scenes. Run from a checkout."""
