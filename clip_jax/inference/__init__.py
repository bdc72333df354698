"""A trained model at work: loaded from wherever it lies, and encoding any number of rows."""
