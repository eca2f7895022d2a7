"""Readers of image sets, one module for each family of layouts.

Each module has two functions. `recognise(path)` inspects a file or folder, and returns whether it holds a set that the
module can read. `read(path, flag, part, normalised)` returns the set as an `ImageSet`.
"""
