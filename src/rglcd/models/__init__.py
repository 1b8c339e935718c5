"""Networks behind the core's callables: diffusers and transformers classes, wrapped at the border."""
