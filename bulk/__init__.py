"""Detection in millions of images with Ray Data, and the command ``centernet-detect-ray``."""

import os

# Before any module imports Ray.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
