"""The command line: parse, call jobs, print; nothing else."""
