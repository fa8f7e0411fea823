"""The Ray Serve application beside ``centernet-serve`` on the same cores."""
