"""Soft labels on disk: read, write, pack and verify label files, and choose the order of training batches.

A view is an augmented image: it is cropped, and may be flipped and mixed with another image. The crop,
flip and mix of each view are stored in label files, or drawn at random from a seed.
"""
