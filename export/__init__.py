"""From a trained network to a version in a model repository: load, capture, fold, prove, time, publish.

:func:`normfold.export.pipeline.export_model` runs all steps; each step is a folder of its own that works alone.
Nothing of ``serving`` or ``cli`` may be imported here: the two halves meet only in the repository on disk.
"""
