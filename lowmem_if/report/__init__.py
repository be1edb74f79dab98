"""What people see: tables of plans and runs, and the progress of a run."""
