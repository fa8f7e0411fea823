"""Generated inputs that try to cost the service more than it states, of every kind it reads.

    python -m benchmarks.hostile_inputs [--cases 100000] [--kinds jpeg http_body ...]

Each kind has a generator, which builds an input from the structures of its format (segments,
chunks, headers, messages) and may change single bytes afterwards, and a function that reads the
input as the service or ``centernet-export`` does (:mod:`benchmarks.hostile_inputs.readers`). The
readers run in processes of their own. Whether an input is accepted or refused, reading it may take
2 CPU seconds and 256 MB beside the cost that the service states for it, may occupy the event loop
for 50 ms, and may raise only the documented errors. See :mod:`benchmarks.hostile_inputs.bounds`.
"""
