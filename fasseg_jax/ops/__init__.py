"""The chapter ops."""
