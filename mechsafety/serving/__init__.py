"""Generation by a vLLM server that runs an exported checkpoint, in an environment of its own."""
