"""Many runs beside each other: what is planned, what is done, and what the differences are worth."""
