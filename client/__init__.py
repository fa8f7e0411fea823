"""The command-line client and drawing."""
