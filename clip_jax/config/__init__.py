"""What a run is: config files checked and frozen, and their record in a workdir."""
