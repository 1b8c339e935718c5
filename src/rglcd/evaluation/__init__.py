"""Drawing, scoring and telling: what the students are worth, and a page that says so."""
