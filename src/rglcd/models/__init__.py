"""Networks behind the core's interfaces: diffusers and transformers classes in thin wrappers."""
