"""What several algorithms share: losses, layers, exact solves, and how histories become batches for them."""
