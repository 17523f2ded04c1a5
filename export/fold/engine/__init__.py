"""This room chooses how affines leave the network and carries that out: plans, costs of carriers, the driver.

It asks operators only through their methods; nothing may come in that reads a graph or knows one kind's identity.
"""
