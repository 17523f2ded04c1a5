"""The files of a version: report, configuration, labels, provenance, and writing all of them at once.

What decides anything about a graph may not come in: it is final when it gets here.
"""
