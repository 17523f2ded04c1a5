"""Reference networks of the book's kind: architecture, training recipe, trained checkpoint, model card.

One package each. Importing it gives paths and samples and needs numpy only; its ``network`` and ``train`` need torch.
"""
