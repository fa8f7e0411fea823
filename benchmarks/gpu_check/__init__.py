"""Everything that only a GPU can settle, with one command: see ``__main__``."""
