"""Blind human studies: two pictures of a prompt side by side, and which one people prefer."""
