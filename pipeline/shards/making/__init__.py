"""From a source to a set: a plan, the claim on a folder, each tar of the plan whole or absent, the manifest last."""
