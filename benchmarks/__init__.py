"""Benchmarks: `python -m benchmarks` runs all areas, `python -m benchmarks.<area>` one."""
