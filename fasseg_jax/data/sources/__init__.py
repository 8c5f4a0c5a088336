"""The chapter sources."""
