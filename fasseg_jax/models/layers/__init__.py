"""The chapter layers."""
