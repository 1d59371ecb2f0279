"""What the command lines are made of."""
