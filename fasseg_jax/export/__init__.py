"""The chapter export."""
