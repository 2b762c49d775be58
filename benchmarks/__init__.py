"""Measures this project against the authors' recipe and diffusers' pipeline, in one run: `python -m benchmarks`."""
