"""What those are called that are measured; an export is called by its file type."""

BASE, TUNED, SERVED = "base", "tuned", "served"
