"""A repository on object storage (S3, Google Cloud Storage, Hugging Face): its image on this machine's disk.

No model, no request and no event loop come in: the catalog sees only the folder that is written here.
"""
