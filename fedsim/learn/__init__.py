"""The numbers: models, objectives, batches, optimisers, and the engine that runs local training. The only torch."""
