"""What one trial does: data, teachers, blocks, AMA modules, students, costs and the distillation loop."""
