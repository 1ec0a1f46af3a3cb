"""Work on the workers of a Dask cluster: one that is there, or one of a recipe, here or under a batch system."""
