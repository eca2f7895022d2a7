"""Readers of image sets, one module for each family of layouts.

Each module has two functions. `recognise(path)` returns whether the file or folder holds a set that the module can
read, judged by the content. `read(path, flag, part, normalised)` returns the set as an `ImageSet`.
"""
