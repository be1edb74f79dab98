"""What this machine has and how fast it is. Only `torch_facts`, in a child process, imports torch."""
