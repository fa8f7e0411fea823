"""What becomes of requests when the service ends, is asked for too much, or runs for long."""
