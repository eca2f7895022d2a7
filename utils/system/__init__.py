"""The machine and the operating system: processes, files, memory, signals, log."""
