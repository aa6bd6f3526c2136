"""What is beside vLLM's routes: the middleware that knows HTTP's facts, and the /shadow routes."""
