"""Starting ranks on hosts, and starting them again: the supervisor, its agents, and what it knows of each start."""
