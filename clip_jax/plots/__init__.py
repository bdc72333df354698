"""Pictures of runs, data sets, plans and evaluations, by matplotlib."""
