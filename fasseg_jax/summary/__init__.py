"""The chapter summary."""
