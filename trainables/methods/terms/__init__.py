"""Terms of a loss, one file a slot: functions of tensors, without a method's state."""
