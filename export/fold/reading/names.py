"""The names of nodes in reports."""

from __future__ import annotations

import onnx_ir as ir


def module_of(node: ir.Node) -> str:
    """Return the path of the module that a node came from, if its exporter noted it, or ""."""
    noted = node.metadata_props.get("normfold.module")
    if noted:
        return noted
    scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes", "")
    names = [s for s in scopes.strip("[]").replace("'", "").split(", ") if s]
    if len(names) > 1:
        return names[-2]
    if node.op_type in ("BatchNormalization", "Conv", "ConvTranspose", "Gemm") and len(node.inputs) > 1:
        owners = [v.name.rpartition(".")[0] for v in node.inputs[1:] if v is not None and v.name and "." in v.name]
        if owners and not owners[0].startswith("onnx::"):
            return owners[0]
    return ""
