"""The wordings of the instruction of each pretraining task, the usual one first.

'{}' is replaced by a word that the instruction names. An empty wording means no instruction: the
sentinels in a text ask for its spans, and a text alone asks for its continuation.
"""

_WORDINGS = {
    "span_corruption": "",
    "lm": " | continue: | What follows this text? | go on:",
    "repeat": ("repeat from {} : | Copy the text from {} on: | say it again, beginning with {} :"),
    "look_up": "look up: | Say for each word what it stands for: | translate by the table:",
    "mend": "mend: | Correct the text: | Write it without the wrong words:",
    "name": (
        "name: | What is this called? | Give the name of what is described: | identifier: | "
        "find a short name for this:"
    ),
    "kind": (
        "kind: | What kind of object is described? | type of the text: | "
        "Is it a function, a class, a method, a module or a story?"
    ),
    "summary": (
        "summary: | Summarize: | Say it in a few words: | in short: | "
        "How does the description begin?"
    ),
    "next": "next: | Which part comes next, a or b? | choose what follows: | How does it go on?",
    "order": "order: | Are the two parts in the right order? | is a before b? | Does a come first?",
    "together": "together: | Does b follow a? | Do the parts belong together? | one text?",
    "same": "same: | Are a and b from the same book? | same author and book?",
    "scrambled": "good: | Is this good English? | are the words in order?",
    "copy": "copy: | Repeat the first words: | say again: | How does it begin?",
    "first": "first: | What is the first word? | word at the start:",
    "last": "last: | What is the last word? | word at the end:",
    "after": "after {} : | Which word comes after {} here? | what follows {} in the text:",
    "before": (
        "before {} : | Which word comes before {} here? | what stands in front of {} in the text:"
    ),
    "contains": "contains {} : | Is the word {} in this text? | look for {} in the text:",
    "count": "count {} : | How often does {} occur in the text?",
    "topic": (
        "topic: | What is it about? | Give a keyword: | subject: | the most telling word: | "
        "category:"
    ),
    "pick": "pick {} {} {} {} : | Which is it about, {} {} {} or {} ? | label {} {} {} or {} :",
    "assign": " | assign: | What is to be said here? | match the text:",
    "odd": "odd: | Which word is wrong here? | find the word that does not belong:",
    "gap": "gap: | Which word is missing? | fill in the word: | missing word:",
    "choice": (
        "choose {} or {} : | Which word is missing, {} or {} ? | fill in {} or {} in the text:"
    ),
    "mood": "mood: | Is this good or bad? | tone: | How does it feel?",
    "book": "book: | Which book is this from? | title:",
    "author": "author: | Who wrote this? | written by:",
}

INSTRUCTIONS: dict[str, tuple[str, ...]] = {
    name: tuple(wordings.split(" | ")) for name, wordings in _WORDINGS.items()
}
