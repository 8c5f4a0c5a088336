"""The chapter weights."""
