"""The command lines of what does not train one experiment: `l2t NAME`, and the jobs of these names."""
