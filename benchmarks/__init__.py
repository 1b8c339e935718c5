"""What `make results` and `make bench` run: figures, with the command that makes them."""
