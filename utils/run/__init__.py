"""Modules for one run of a program: checks before it starts, checkpoints, progress, logging and the summary."""
