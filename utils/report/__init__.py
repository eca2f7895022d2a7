"""Compares finished training runs: averages runs that differ only in the seed, and writes tables and figures."""
