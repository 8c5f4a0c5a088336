"""The chapter runtime."""
