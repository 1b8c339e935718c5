"""The toy world's second edition: pictures that people like, as a web-like corpus shows them, its models, raters and gates."""
