"""Linear layers whose weights are packed in the order in which oneDNN multiplies them."""
