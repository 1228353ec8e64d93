"""What the phantom checkpoint can do, in figures: masks, answers and reports against the truth of phantoms."""
