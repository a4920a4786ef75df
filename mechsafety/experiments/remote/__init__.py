"""An experiment on ray: the worker that makes parts, and the driver that alone writes the run folder."""
