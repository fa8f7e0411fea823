"""perf_analyzer on the tensor form of a model, beside Triton."""
