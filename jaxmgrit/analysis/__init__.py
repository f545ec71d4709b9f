"""What can be said of a training before or beside it: inexactness, cost, control."""
