"""Find the blocks of a teacher."""
