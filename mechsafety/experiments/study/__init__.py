"""The granular study: every system, arm, prompt and judge."""
