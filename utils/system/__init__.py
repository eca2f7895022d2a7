"""Modules that deal with the machine and the operating system: processes, files, memory, signals and the log."""
