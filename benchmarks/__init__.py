"""The commands that produce the numbers in docs/benchmarks.md and the README."""
