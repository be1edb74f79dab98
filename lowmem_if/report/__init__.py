"""What people see: tables, progress, charts."""
