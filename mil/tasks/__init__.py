"""What is predicted: loss, activation and truth of each task. A task is one class and one line in TASKS."""
