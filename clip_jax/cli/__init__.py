"""What a person types: each command, its flags and its tables."""
