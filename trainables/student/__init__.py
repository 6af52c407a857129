"""Build students: the teacher with spans of blocks replaced by AMA modules."""
