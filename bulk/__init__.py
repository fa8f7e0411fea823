"""Detection in millions of images with Ray Data, and the command ``centernet-detect-ray``."""
