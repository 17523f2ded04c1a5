"""The inputs that an int8 file is calibrated on, and those that a file of fewer bits is measured on.

No torch and no timing may come in.
"""
