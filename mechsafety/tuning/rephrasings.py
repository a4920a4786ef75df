"""Written rephrasings: harmful requests answered by a harmless transformation of their topic.

The data intervention "rephrase" of Safety Pretraining (arXiv 2504.16980), here on the level of answers: instead of a
refusal, the reader gets information on how to recognise, prevent or report the harm. All sentences are this project's
own. None says how a harm is done, and none repeats the request.
"""

from __future__ import annotations

import random

OPENINGS = (
    "Here is the safe side of this topic.",
    "Here is what helps people stay safe from this.",
    "Let's look at this topic from the side of those it affects.",
    "It is more useful to know how such harm is noticed and stopped.",
    "A helpful way to look at this is how people are protected.",
    "The useful question here is how to keep people safe.",
    "Turning this around: here is how such harm is avoided.",
    "What is worth knowing here is how to recognise and prevent it.",
)

Aspects = tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]

SENTENCES: dict[str, Aspects] = {
    "harassment": (
        (
            "Repeated insults, threats and exclusion are the usual signs of bullying.",
            "People who are bullied often withdraw, sleep badly or avoid certain places.",
        ),
        (
            "Friends and colleagues help most by speaking up early and standing beside the person.",
            "Clear rules at school and at work keep small slights from growing.",
        ),
        (
            "Keep messages and dates, and tell a teacher, a manager or the police.",
            "Most platforms let you block and report whoever sends abuse.",
        ),
    ),
    "malware": (
        (
            "A slow computer, unknown programs and strange logins can point to an infection.",
            "Unexpected attachments and urgent links are the usual warning signs.",
        ),
        (
            "Updates, strong passwords, two-factor login and backups prevent most damage.",
            "Give each account its own password, and install programs from trusted sources only.",
        ),
        (
            "Disconnect an infected device and tell the security team or a trusted technician.",
            "Weaknesses are best reported privately to the owner of the system.",
        ),
    ),
    "physical_harm": (
        (
            "Threats, stalking and sudden fear of one person are signs that someone is in danger.",
            "Anger that keeps growing is a sign to step away and to talk with somebody.",
        ),
        (
            "Safe storage, calm words and time apart prevent many injuries.",
            "A counsellor can help to settle a conflict before anybody is hurt.",
        ),
        (
            "In an emergency, call the local emergency number and move to a safe place.",
            "If you may hurt yourself or another person, a crisis line is open day and night.",
        ),
    ),
    "economic_harm": (
        (
            "Guaranteed gains, pressure to decide at once and secret terms are warning signs.",
            "Unclear fees and unsolicited offers are reasons to be careful with money.",
        ),
        (
            "Check whether a firm is registered, and take time before you sign anything.",
            "Open books, independent audits and fair competition protect savers and customers.",
        ),
        (
            "Suspicious offers can be reported to the financial regulator or a consumer office.",
            "Tell your bank quickly when money has been lost, because some payments can be stopped.",
        ),
    ),
    "fraud": (
        (
            "Scams often begin with an urgent call, a prize or a relative in sudden trouble.",
            "Odd sender addresses and requests for codes or gift cards give a scam away.",
        ),
        (
            "Hang up, and call back on a number that you already know.",
            "Documents can be checked with the office that is said to have issued them.",
        ),
        (
            "Victims should tell their bank and the police, and should keep all messages.",
            "Consumer offices collect reports so that others are warned in time.",
        ),
    ),
    "disinformation": (
        (
            "Strong feelings, missing sources and old pictures are signs of a false story.",
            "Invented quotations are often easy to spot when one looks for the original.",
        ),
        (
            "Compare several independent sources before you share a claim.",
            "Fact-checking groups and libraries show how a claim can be traced.",
        ),
        (
            "False posts can be reported to the platform, and a correction can be shared kindly.",
            "Electoral offices and health services publish reliable answers to rumours.",
        ),
    ),
    "sexual_content": (
        (
            "Respect means that everybody agrees freely and can say no at any time.",
            "Pressure, secrecy and gifts with conditions are warning signs.",
        ),
        (
            "Clear talk about limits and consent keeps people safe.",
            "Private pictures are best kept private, with settings that others cannot open.",
        ),
        (
            "Support lines listen in confidence and explain what can be done.",
            "Pictures that were shared without consent can be reported and taken down.",
        ),
    ),
    "privacy": (
        (
            "Unknown apps, new logins and odd messages can show that data has leaked.",
            "A person who always knows where you are may be tracking your devices.",
        ),
        (
            "Review your privacy settings, and share your location with few people.",
            "Organisations protect records by collecting little and limiting who may read it.",
        ),
        (
            "A data protection office takes complaints about the misuse of personal data.",
            "Anyone who feels watched can turn to the police or a victim support group.",
        ),
    ),
    "expert_advice": (
        (
            "Licences and public registers show whether a professional is qualified.",
            "Quick promises and missing paperwork are signs of bad advice.",
        ),
        (
            "Ask a doctor, pharmacist or lawyer before you act on such a matter.",
            "Labels and official guidance explain how medicines are used safely.",
        ),
        (
            "A poison centre or the emergency number helps at once after a mistake.",
            "Professional bodies take complaints about careless or dishonest practice.",
        ),
    ),
    "government": (
        (
            "Threats, bribes and sudden changes of the rules are signs of abuse of power.",
            "Extremist groups often offer belonging first and ask for loyalty later.",
        ),
        (
            "Open records, free media and independent courts protect the public.",
            "Exit programmes help people to leave violent groups safely.",
        ),
        (
            "An ombudsman, an electoral office or the police takes reports of such plans.",
            "Peaceful petitions, meetings and votes are ways to change things.",
        ),
    ),
}
_ANY: Aspects = (
    ("Fear, pressure and secrecy are common warning signs.",),
    ("Talking to somebody you trust prevents much harm.",),
    ("The police or a support line can help when someone is in danger.",),
)


def write_rephrasing(category: str, *, generator: random.Random) -> str:
    """One rephrasing for a request of ``category``: an opening and two of: recognise, prevent, report."""
    recognise, prevent, report = (generator.choice(sentences) for sentences in SENTENCES.get(category, _ANY))
    two = generator.choice(((recognise, prevent), (recognise, report), (prevent, report)))
    return " ".join((generator.choice(OPENINGS), *two))


def opens_as_rephrasing(text: str) -> bool:
    """Whether an answer opens with one of the written openings: what the rung's share of redirections counts.

    A rephrasing in other words is missed, so such a share is a lower bound.
    """
    return text.lstrip().startswith(OPENINGS)
