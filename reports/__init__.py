"""HTML reports in one file: tables, line charts, and drawings of detections."""
