"""Many runs side by side: which method is better, and how sure that is."""
