"""The answer to one inference request: inputs read and checked, the model run, outputs written, the request traced.

No transport comes in, and no loading of models: this room takes and gives bytes, and asks the catalog for the model.
"""
