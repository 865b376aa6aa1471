"""Real Celery workers, in processes of their own."""
