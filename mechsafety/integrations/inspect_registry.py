"""What inspect_ai loads when it meets a name that begins with ``mechsafety/`` (its entry point group)."""

from __future__ import annotations

from mechsafety.integrations.inspect_provider import mechsafety as mechsafety
from mechsafety.integrations.inspect_scorer import refusal_judge as refusal_judge
from mechsafety.integrations.inspect_scorer import refusal_rate as refusal_rate
from mechsafety.integrations.inspect_scorer import refusal_stderr as refusal_stderr
from mechsafety.integrations.inspect_scorer import refusal_wilson as refusal_wilson
