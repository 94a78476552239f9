"""What turns tokens into logits."""
