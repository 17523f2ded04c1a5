"""onnxruntime: its sessions, their devices and options, and the memory of inputs and outputs.

Nothing about repositories, requests or queues comes in; ``settings`` and the modules of options import no onnxruntime.
"""
