"""Train students: models, teachers, losses, metrics, optimizer, schedules, CUDA graphs and data parallelism."""
