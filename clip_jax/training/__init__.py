"""One update of a model: its state, its step, its optimizer, and the checkpoints that carry both on."""
