"""What a page says of other pages: that they are there, and not that they are still to come."""

from __future__ import annotations

import re

import pytest

from tests.book.prose import headings, pages

# Words for what is not there. A page that uses them speaks of this book, or it stands in the list below.
OWED = re.compile(
    r"\bnot yet (?:built|there|written|made|measured|available|known|possible)\b"
    r"|\b(?:is|are) (?:still )?(?:owed|to come|to be written|planned)\b"
    r"|\bstill (?:open|missing|owed) in this\b"
    r"|\bwill (?:later )?be (?:built|shown|added|written|measured|remade|explained|drawn)\b"
    r"|\b(?:in|of) a (?:later|future) (?:chapter|version|release|part)\b"
    r"|\blater chapters? (?:will|shows?|builds?)\b|\b(?:models|chapters?|kernel|part)\b[^.]{0,30}\bcomes? later\b"
    r"|\bno command (?:of|in) this\b|\b(?:earlier|first) prototype\b"
    r"|\b(?:does|do) not exist yet\b|\bhas no \w+ yet\b|\bTODO\b|\bcoming soon\b",
    re.IGNORECASE,
)
# Sentences that say when something is missing, and not that it is.
CONDITIONS = (
    "Where a file is not there yet, the page says so.",
    "Section 14.10 has the figure, or says that it is owed.",
    "what one task earns is still to come until it is done",
    "knows nothing of what is still to come",
)


def owed(text: str) -> list[str]:
    """The places where a text calls something of this book missing."""
    for sentence in CONDITIONS:
        text = text.replace(sentence, "")
    return [text[max(0, found.start() - 60) : found.end() + 40] for found in OWED.finditer(text)]


@pytest.mark.parametrize("page", sorted(pages()))
def test_nothing_is_called_missing(page: str) -> None:
    assert owed(pages()[page]) == []


@pytest.mark.parametrize(
    "sentence",
    [
        "An earlier prototype of this project saw three things.",
        "No command of this package remakes these runs.",
        "the question is still open in this book",
        "The models that read them come later.",
        "A kernel is not yet built.",
        "This will be shown in chapter 14.",
    ],
)
def test_the_words_that_once_went_stale_are_found(sentence: str) -> None:
    assert owed(sentence)


def test_chapters_and_sections_that_are_named_exist() -> None:
    known = headings()
    wrong = []
    for page, text in pages().items():
        for number in re.findall(r"\b[Cc]hapters? (\d+)\b", text):
            if number not in known:
                wrong.append(f"{page}: chapter {number}")
        for chapter, section in re.findall(r"\b[Ss]ections? (\d+)\.(\d+)\b", text):
            if f"{chapter}.{section}" not in known.get(chapter, set()):
                wrong.append(f"{page}: section {chapter}.{section}")
    assert wrong == []


def test_links_to_a_chapter_name_its_number() -> None:
    """`[chapter 9](09_paper_versus_code)`: the number that is read and the page that is opened."""
    wrong = [
        f"{page}: {text} -> {target}"
        for page, prose in pages().items()
        for text, target in re.findall(r"\[([Cc]hapter \d+)[^\]]*\]\((?:\.\./notebooks/)?(\d\d_\w+)", prose)
        if int(text.split()[1]) != int(target[:2])
    ]
    assert wrong == []
