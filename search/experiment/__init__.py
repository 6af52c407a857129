"""The experiment file: schema, validation, resolved form."""
