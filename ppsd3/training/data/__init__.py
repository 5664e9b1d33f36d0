"""Training data: pictures with captions, in the order and the sizes in which a run sees them."""
