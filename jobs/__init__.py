"""One stage over many slides: manifest, run folder, receipts, executors, and the main job."""
