"""Recipes: YAML files whose keys are the fields of the specs; `wsi run --config NAME` uses one."""
