"""The wording of the demo's support tickets: tables only, no logic.

`{item}` and `{order}` are filled in per ticket. Labels share much of their vocabulary on purpose ("charged",
"order", "account", "back"), so that counting words is not enough.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Topic:
    """How customers talk about one label, and how support answers."""

    label: str
    complaints: tuple[str, ...]
    """Wordings in use for years."""
    recent_complaints: tuple[str, ...]
    """Wordings that came up lately: the champion's training tickets lack them, held-out ones have some."""
    mentions: tuple[str, ...]
    """Noun phrases that bring the topic up without complaining about it."""
    apology: str
    action: str


TOPICS: tuple[Topic, ...] = (
    Topic(
        label="billing",
        complaints=(
            "i was charged twice for the {item}",
            "the invoice for the {item} shows the wrong amount",
            "you took more money for the {item} than the price said",
            "the discount code was not applied to the {item}",
            "there is a fee for the {item} that nobody explained",
            "my account was charged for a {item} that i never ordered",
            "my card was debited again after i paid for the {item}",
        ),
        recent_complaints=(
            "the pay later plan took two instalments for the {item}",
            "the gift balance went down although the {item} was free",
        ),
        mentions=("double charge", "wrong invoice", "discount code", "card payment"),
        apology="sorry about the charge for the {item}",
        action="We are checking the payment and will send you a correct invoice {when}",
    ),
    Topic(
        label="delivery",
        complaints=(
            "the {item} has not arrived yet",
            "i paid for the {item} weeks ago and never got it",
            "tracking says the {item} was handed over but nothing is here",
            "the carrier left the {item} at the wrong address",
            "my parcel with the {item} is stuck in the depot",
            "nobody came with the {item} on the agreed day",
            "only half of the order came, the {item} is missing",
        ),
        recent_complaints=(
            "the locker code for the {item} does not open the box",
            "the drone dropped the {item} next door",
        ),
        mentions=("late parcel", "tracking number", "delivery date", "carrier"),
        apology="sorry that the {item} has not reached you",
        action="We are asking the carrier and will send you a new tracking link {when}",
    ),
    Topic(
        label="returns",
        complaints=(
            "i want to send the {item} back",
            "the {item} came broken and i want my money back",
            "i sent back the {item} and still have no refund",
            "the {item} is the wrong size, can i swap it",
            "how do i get a return slip for the {item}",
            "the {item} is not what i ordered, please take it back",
            "please exchange the {item} for another colour",
        ),
        recent_complaints=(
            "the drop off point would not accept the {item} without a qr code",
            "the {item} is on trial and i will not keep it",
        ),
        mentions=("refund", "return slip", "exchange", "broken part"),
        apology="sorry that the {item} is not right for you",
        action="We have opened a return for you and will send the slip {when}",
    ),
    Topic(
        label="account",
        complaints=(
            "i cannot log in to my account",
            "the password reset mail never arrives",
            "please change the address in my account",
            "someone else is using my account to order a {item}",
            "my account is locked after i ordered the {item}",
            "i need to change the mail address i used for the {item}",
            "my order history with the {item} is gone",
        ),
        recent_complaints=(
            "the passkey from my old phone is refused",
            "the family profile with the {item} belongs to my ex now",
        ),
        mentions=("password reset", "login problem", "new address", "locked account"),
        apology="sorry about all the trouble with your profile",
        action="We have secured the login and will send you a new reset link {when}",
    ),
    Topic(
        label="technical",
        complaints=(
            "the {item} does not turn on",
            "the app crashes when i open the {item} page",
            "the {item} stopped working after the update",
            "the {item} will not connect to my phone",
            "checkout shows an error when i add the {item}",
            "the screen of the {item} stays black",
            "the {item} makes a loud noise and shuts down",
        ),
        recent_complaints=(
            "the {item} assistant no longer understands me",
            "the {item} keeps asking for a firmware key",
        ),
        mentions=("app crash", "update", "error message", "manual"),
        apology="sorry that the {item} is not working",
        action="One of our engineers will look into it and will call you {when}",
    ),
    Topic(
        label="cancel",
        complaints=(
            "please cancel my order for the {item}",
            "i do not need the {item} any more, stop the order",
            "i ordered the {item} by mistake, do not send it",
            "call off the {item} before it ships",
            "i want to end my subscription for the {item}",
            "take the {item} off my order",
            "close my account, i do not want the {item} either",
        ),
        recent_complaints=(
            "pause nothing, just terminate the {item} plan",
            "the {item} preorder took too long, count me out",
        ),
        mentions=("cancelled order", "subscription", "second order", "old contract"),
        apology="sorry to hear that you no longer want the {item}",
        action="We have stopped the order and will confirm it by mail {when}",
    ),
    Topic(
        label="praise",
        complaints=(
            "the {item} is wonderful, well done",
            "i just want to say thanks for the {item}",
            "your support was great when i ordered the {item}",
            "the {item} came early and works perfectly",
            "best {item} i ever had",
            "my kids love the {item}, no complaints at all",
            "the refund for the {item} was quick, great service",
        ),
        recent_complaints=(
            "five stars for the {item}",
            "hats off to whoever packed the {item}",
        ),
        mentions=("good service", "quick reply", "nice box", "helpful agent"),
        apology="thank you for the kind words about the {item}",
        action="We will share them with the rest of our team {when}",
    ),
)

SETTLED_BEFORE: tuple[str, ...] = (
    "the {mention} is sorted by now.",
    "thanks for fixing the {mention}.",
    "this is not about the {mention}.",
    "i wrote about the {mention} before, that is done.",
    "first {complaint}, but that is solved.",
)
"""Bring up a topic that does not matter, before the one that does."""

SETTLED_AFTER: tuple[str, ...] = (
    "the {mention} can wait.",
    "please ignore my mail about the {mention}.",
    "the {mention} is fine now.",
    "it also said {complaint}, that was a mix up.",
)
"""Bring up a topic that does not matter, after the one that does."""

GREETINGS: tuple[str, ...] = ("hi,", "hello,", "hey team,", "good morning,", "dear support,", "")
INTRODUCTIONS: tuple[str, ...] = ("{name} here.", "this is {name}.", "my name is {name}.")
FILLERS: tuple[str, ...] = ("so", "well,", "sadly", "i think", "to be honest", "once again", "as far as i can see")
ORDER_SENTENCES: tuple[str, ...] = (
    "my order is {order}.",
    "order {order}.",
    "it is order {order}.",
    "it is about order {order}.",
)
URGENCIES: tuple[str, ...] = ("it is urgent.", "i need an answer today.", "please hurry.")
CLOSINGS: tuple[str, ...] = ("thanks, {name}", "regards, {name}", "best, {name}", "{name}")

NAMES: tuple[str, ...] = (
    *("Mara", "Jonas", "Priya", "Omar", "Lena", "Diego", "Aiko", "Noah", "Fatima", "Pavel", "Ines", "Tom"),
    *("Zoe", "Kofi", "Greta", "Liam", "Nadia", "Hugo", "Mei", "Sven", "Rosa", "Amir", "Clara", "Felix"),
)
ITEMS: tuple[str, ...] = (
    *("lamp", "kettle", "tent", "camera", "desk", "bike", "phone", "jacket", "printer", "guitar", "drill", "watch"),
    *("speaker", "toaster", "router", "scooter"),
)
