"""The proof that an exported graph computes the same as the network: the cases, the bound, the comparison.

A module here runs graphs and networks; what changes or writes a graph may not come in.
"""
