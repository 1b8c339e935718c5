"""What the stages read and write: the source index, shards, latent caches, manifests, storage."""
