"""Demo: a support-ticket triage task, and four small models that learn it in about a minute on a CPU."""
