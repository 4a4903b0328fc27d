"""What is computed: every tensor, file format and number. Reads no environment, creates no process group."""
