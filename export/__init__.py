"""From a trained network to a version in a model repository: load, capture, fold, prove, time, publish.

:func:`normfold.export.pipeline.export_model` is the whole of it; every step is a module that can be used alone.
"""
