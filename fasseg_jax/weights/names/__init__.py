"""The chapter names."""
