"""What produces the numbers in docs/benchmarks.md and the README, one command each."""
