"""Sets made from sets without copying images: some people, fewer images, without what is found to be at fault."""
