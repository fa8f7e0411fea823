"""HTML reports in one file, and their charts; needs only the standard library."""
