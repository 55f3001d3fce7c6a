"""Model + data -> profile."""
