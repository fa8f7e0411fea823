"""Networks of the CenterNet family as plain ``torch.nn`` modules.

Their parameter names are ours; the names that the upstream checkpoints use are
translated in :mod:`model_export.checkpoints`.
"""
