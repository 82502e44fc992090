"""Many runs side by side: plan, cells, rates, statistics, memory."""
