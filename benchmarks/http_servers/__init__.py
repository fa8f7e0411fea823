"""HTTP servers compared: speed, and behaviour under malformed and slow requests."""
