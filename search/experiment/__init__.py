"""The experiment file: schema, validation, what it resolves to."""
