"""The variants of one network: made, proved, timed against each other, and written in fewer bits on request.

A module here decides which graph is published; how a graph is folded or laid out, and any writing of files but the
cache of measurements, may not come in.
"""
