"""What methods read while a student learns: the teacher, the maps of both, the teacher behind a block."""
