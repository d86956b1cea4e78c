"""The jobs on Ray: from a job file to its model, whatever becomes of workers, machines and drivers meanwhile."""
