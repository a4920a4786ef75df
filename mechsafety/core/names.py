"""Names that configurations and the science have in common; here, so that a command's ``--help`` loads no torch."""

from __future__ import annotations

from typing import Literal, get_args

Method = Literal["mean_difference", "pca", "leace", "probe"]
"""How a direction is estimated."""
Centring = Literal["pooled", "per_class"]
"""What principal components are centred on."""
Positions = Literal["last_prompt", "post_instruction", "thought-end"]
"""At which tokens directions are found: the last of the prompt, every one of the template after the user's text, or the
last of the model's own thought."""
THOUGHT_END = "thought-end"
"""The position at which the model's own thought ends."""
FitOn = Literal["behaviour", "labels"]
"""On which fit prompts directions are found: those that the model treats as their label says, or all."""
AnchorsUsed = Literal[FitOn, "anchors"]
"""The same in a study, or on every anchor: validation prompts too, none sampled."""
Search = Literal["race", "exhaustive"]
"""Whether candidates of a sweep race, or each is scored on all prompts."""
RecipeName = Literal["default", "paper", "code", "granular-release", "arditi"]
Dosage = Literal["alpha", "directions", "layers"]
"""What a dose curve varies."""
Attack = Literal["vanilla", "decoding", "suffix"]
Measure = Literal["cosine", "angles", "cka", "transfer"]
"""How checkpoints are compared."""
QuestionForm = Literal["logit", "text"]
"""How a model is asked about its own answer: by log-probability, or in words."""
METHODS: tuple[Method, ...] = get_args(Method)
CENTRINGS: tuple[Centring, ...] = get_args(Centring)
RECIPE_NAMES: tuple[RecipeName, ...] = get_args(RecipeName)
DOSAGES: tuple[Dosage, ...] = get_args(Dosage)
ATTACKS: tuple[Attack, ...] = get_args(Attack)
MEASURES: tuple[Measure, ...] = get_args(Measure)
QUESTION_FORMS: tuple[QuestionForm, ...] = get_args(QuestionForm)
SELECTION_RULES: dict[str, tuple[float, ...]] = {"auto": (0.1, 0.2, 0.3, 0.5), "arditi": (0.1,)}
"""KL bounds tried in turn. ``arditi`` is the published one; small models pay more KL for the same removal."""
CONTEXTS_AT_ONCE = 32
"""Contexts that lm-eval's tasks run in one batch, by default."""
MAX_NEW_TOKENS = 64
"""Tokens that an answer may have, by default."""
RESPONSES_AT_ONCE = 160
"""Responses that are generated in one batch, by default."""
LINE_ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
"""Places on the line from base (0) to tuned (1) and beyond."""
TOP_RANKS = (1, 4, 16)
"""How many singular directions of dW are kept, or removed."""
