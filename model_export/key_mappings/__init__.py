"""Mappings between upstream checkpoint keys and network parameter names, one module per source."""
