"""The service on a Ray cluster, with Ray Serve; needs the extra ``ray``."""
