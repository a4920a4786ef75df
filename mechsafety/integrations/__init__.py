"""mechsafety's models, judges and runs in other evaluation packages: inspect_ai and lm-eval.

Nothing here is imported by ``import mechsafety``; each module needs its extra (``mechsafety[inspect]``,
``mechsafety[lm-eval]``) and reports where it is missing.
"""
