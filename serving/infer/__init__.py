"""The answer to one inference request: inputs are read and checked, the model runs, outputs are written.

No transport comes in, and no loading of models: this room takes and gives bytes, and asks the catalog for the model.
"""
