"""From a configuration to the parts of a run: the only place that knows them all."""
