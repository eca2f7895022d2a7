"""Readers of image sets, one module for each family of layouts.

Each module has two functions: `recognise(path)` tells by the content of a place whether it holds such a set, and
`read(path, flag, part, normalised)` returns its `ImageSet`.
"""
