"""Training a student under an objective: the step, the epochs around it, and what both need."""
