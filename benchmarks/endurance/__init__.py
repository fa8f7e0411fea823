"""Endurance tests: shutdown under load, overload, client disconnects and long runs."""
