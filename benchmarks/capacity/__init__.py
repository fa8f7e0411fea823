"""Capacity planning: a queueing simulation of replicas behind a load balancer.

``python -m benchmarks.capacity measure`` compares it with running replicas, ``extrapolate`` applies
it to more of them; see ``docs/scaling.md``.
"""
