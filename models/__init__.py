"""Two reference networks, each a package with architecture, training recipe, trained checkpoint and model card.

Importing such a package gives paths and samples and needs numpy only; its modules ``network`` and ``train`` need torch.
"""
