"""What the commands of all packages share: progress on standard error, and ``--version``."""
