"""The command-line client of the service: HTTP requests and drawing."""
