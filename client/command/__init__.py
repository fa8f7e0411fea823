"""The command ``centernet-detect``."""
