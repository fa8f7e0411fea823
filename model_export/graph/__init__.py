"""The exported graph: normalization, network, decoding heads, peaks, top-K and gather."""
