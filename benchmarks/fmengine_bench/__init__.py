"""Benchmarks: proofs that the answers are right."""
