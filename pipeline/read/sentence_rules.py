"""Where sentences end inside a line of text: rules over full stops, tuned on GUM's training trees.

A candidate is a run of `.`, `!`, `?`, `…` with the quotes, brackets and note marks (`[3]`) that close after it, before
white space. It ends a sentence unless what follows goes on in lower case, or the stop belongs to an abbreviation, an
initial or an enumerator. Abbreviations that may end a sentence do so before a word that typically begins one, which is
the orthographic heuristic of Kiss and Strunk (2006) with fixed lists in place of learnt ones. Ideographic stops need no
white space. Every scan is linear in the length of the line.
"""

import re

#: A run of stops, what closes after it, white space. The lookbehind and the possessive loops keep the scan linear.
_STOP = re.compile(r"(?<![.!?…])([.!?…]++)((?:[\"'”’»)\]}*_]|\s?\[\s?\d{1,3}\s?\])*+)\s++")
_IDEOGRAPHIC_STOP = re.compile(r"(?<![。！？｡])[。！？｡]++[」』”’）》】〉]*+\s*+")
_DEVANAGARI_STOP = re.compile(r"[।॥۔؟]++[\"'”’»)]*+\s++")
#: All that stands before a stop that numbers what follows: `1. The …`, `2.3. The …`, `Figure 1. The …`.
_ENUMERATOR = re.compile(
    r"(?:(?:appendix|box|chapter|fig|figure|note|part|section|step|table) )?\d{1,3}(?:\.\d{1,3})*", re.I
)
_OPENING = "\"'“‘«([{*_¿¡<-–—"
_BEFORE = 40  # characters looked at for the word before a stop

# Word lists as strings: easier to read and to extend than lists of literals.
#: Never the end of a sentence: a name, a number or an explanation follows.
_NEVER_LAST = frozenset(
    """adm atty brig capt cf cmdr col dr drs e.g eg fig figs ft gen gov hon i.e ie lieut lt maj messrs mlle mme mr mrs
    ms mt mx pres prof profs rep reps rev sen sens sgt sr. st supt viz vs""".split()  # noqa: SIM905
)
#: Followed by a number, part of a reference (`No. 4`, `pp. 3`, `ca. 1900`, `Jan. 5`); otherwise words like any other.
_BEFORE_NUMBER = frozenset(
    """apr art aug bk c ca ch chap chaps dec ed eds eq eqs exp feb jan jul jun mar no nos nov oct p par pp pt ref refs
    sec sect sept ser suppl tab v ver vol vols""".split()  # noqa: SIM905
)
#: May stand last: a sentence ends only before a word that typically begins one.
_MAY_BE_LAST = frozenset(
    """a.d a.k.a a.m al approx assn aug ave b.a b.c b.sc bldg blvd bros co corp d.c dec dept dist dphil est etc feb
    gmbh inc intl jan jr ltd m.a m.d m.sc mfg nat nov oct ont p.m ph.d pvt rd resp sept sp spp sr ssp subsp univ
    var""".split()  # noqa: SIM905
)
#: Words that begin sentences far more often than they begin a name or go on after an abbreviation.
_STARTERS = frozenset(
    """a after all also although an and another any as at because before both but by despite during each even every
    finally first for from furthermore he her here his how however i if in indeed instead it its later like many
    meanwhile more moreover most my nevertheless no not now of on once one only other our over perhaps second several
    she since so some such than thanks that the their then there therefore these they this those though three thus to
    today two under unlike until we what when where whether which while who why with yes yet you your""".split()  # noqa: SIM905
)


def sentence_ends(line: str) -> list[int]:
    """Offsets in `line` at which a new sentence begins (0 and the end left out), ascending.

    `line` holds no line break and begins with no white space; white space after a stop goes with the sentence before.
    """
    cuts: list[int] = []
    begin = 0
    for stop in _STOP.finditer(line):
        if stop.end() < len(line) and _ends_here(line, stop, begin):
            begin = stop.end()
            cuts.append(begin)
    return sorted({*cuts, *unambiguous_ends(line)}) if not line.isascii() else cuts


def unambiguous_ends(line: str) -> list[int]:
    """As `sentence_ends`, only at stops of other scripts, which English tokenizers and models do not know."""
    if line.isascii():
        return []
    stops = (_IDEOGRAPHIC_STOP, _DEVANAGARI_STOP)
    return sorted({m.end() for pattern in stops for m in pattern.finditer(line) if m.end() < len(line)})


def _ends_here(line: str, stop: re.Match[str], begin: int) -> bool:
    marks = stop[1]
    following = line[stop.end() : stop.end() + _BEFORE].lstrip(_OPENING)
    if following[:1].islower() or line[stop.end()] in ")]}":
        return False
    if marks != ".":
        return True
    before = line[max(begin, stop.start() - _BEFORE) : stop.start()].split()
    word = before[-1].lstrip(_OPENING) if before else ""
    plain = word.lower()
    if plain in _NEVER_LAST:
        return False
    numbered = following[:1].isdigit()
    if plain in _BEFORE_NUMBER and numbered:
        return False
    if _ENUMERATOR.fullmatch(" ".join(before)):
        return False
    initial = len(word) == 1 and word.isalpha() and word != "I"
    acronym = len(word) > 2 and word[-2] == "." and word[-1].isalpha()
    if not (initial or acronym or plain in _MAY_BE_LAST):
        return True
    if numbered:
        return False
    next_word = re.match(r"[^\W\d_]*", following)
    return next_word is not None and next_word[0].lower() in _STARTERS
