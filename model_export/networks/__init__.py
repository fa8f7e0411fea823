"""Networks of the CenterNet family as plain ``torch.nn`` modules.

Upstream checkpoint keys are mapped to their parameter names in
:mod:`model_export.key_mappings`.
"""
