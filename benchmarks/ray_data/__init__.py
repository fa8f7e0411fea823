"""Throughput of ``centernet-detect-ray`` on a cluster, compared with one detector in a process."""
