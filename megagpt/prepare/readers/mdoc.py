"""The macros of mdoc(7), which BSD's man pages are written in: they say what a word is, and several may stand on a line."""

from __future__ import annotations

PARAGRAPHS = frozenset(("Pp",))
_ENCLOSURES = {
    "Op": "[]", "Oo": "[]", "Dq": "“”", "Do": "“”", "Sq": "‘’", "So": "‘’", "Ql": "‘’", "Pq": "()", "Po": "()", "Aq": "<>", "Ao": "<>", "Brq": "{}",
    "Bro": "{}",
    "Bq": "[]", "Bo": "[]", "Qq": '""', "Qo": '""',
}
"""Of what follows on the line; those that end with `o` go on until their twin that ends with `c`."""
_CLOSERS = {"Oc": "]", "Dc": "”", "Sc": "’", "Pc": ")", "Ac": ">", "Brc": "}", "Bc": "]", "Qc": '"'}
_WORDS = frozenset(
    "Ar Cm Pa Em Sy Li Ev Va Fa Ft Vt In Er Dv Ic Sx An Ad Cd No Tn Lk Mt Nm Fl Xr Fn Ns Ap Ms St Lb Fd Tg Bx Fx Nx Ox Ux At Bsx Dx Pf".split()
)
_SYSTEMS = {"Bx": "BSD", "Fx": "FreeBSD", "Nx": "NetBSD", "Ox": "OpenBSD", "Ux": "UNIX", "At": "AT&T UNIX", "Bsx": "BSD/OS", "Dx": "DragonFly"}
_IGNORED = frozenset("Os Bk Ek Sm Rv Ex Rs Re Bt Ud Hf Db".split())
_OWN_LINE = frozenset("D1 Dl".split())
_CLOSING, _OPENING = frozenset(".,:;)]?!"), frozenset("([")
_MACROS = frozenset((*_ENCLOSURES, *_CLOSERS, *_WORDS))
_SPECIAL = _MACROS | _CLOSING | _OPENING | {"|"}


class Mdoc:
    """What has to be remembered between lines: the program's name, and which lists and displays are open."""

    def __init__(self) -> None:
        self.preformatted = False
        self._name = ""
        self._marks: list[str] = []
        """Of the items of each open list; empty: an item's own words are its line."""

    def request(self, name: str, arguments: list[str]) -> str | None:
        """Text of a macro's line, with `\\n` at an end that asks for a line of its own; None where it is no macro of mdoc."""
        if name in _IGNORED:
            return ""
        if name == "Nd":
            return f"— {self._inline(['No', *arguments])}"
        if name in ("Bd", "Ed"):
            self.preformatted = name == "Bd" and any(word in ("-literal", "-unfilled") for word in arguments)
            return "\n"
        if name == "Bl":
            self._marks.append("- " if any(word in ("-bullet", "-dash", "-hyphen", "-enum", "-item") for word in arguments) else "")
            return "\n"
        if name == "El":
            self._marks = self._marks[:-1]
            return "\n"
        if name == "It":
            mark = self._marks[-1] if self._marks else ""
            return f"\n{mark}" if mark else f"\n{self._inline(['No', *arguments])}\n"
        if name in _OWN_LINE:
            return f"\n{self._inline(['No', *arguments])}\n"
        if name.startswith("%"):
            return " ".join(arguments) + ","
        if name == "Nm" and arguments and not self._name and arguments[0] not in _MACROS:
            self._name = arguments[0]
        if name in _MACROS:
            return self._inline([name, *arguments])
        return None

    def _inline(self, words: list[str]) -> str:
        """Words of a line with the macros among them carried out."""
        pieces: list[str] = []
        closers: list[str] = []
        glue = True
        i = 0

        def put(text: str, attached: bool = False) -> None:
            nonlocal glue
            if pieces and not (glue or attached):
                pieces.append(" ")
            pieces.append(text)
            glue = False

        while i < len(words):
            word = words[i]
            i += 1
            if word in _CLOSING or word == "|":
                put(word, attached=word != "|")
                continue
            if word in _OPENING:
                put(word)
                glue = True
                continue
            if word in _ENCLOSURES:
                opening, closing = _ENCLOSURES[word]
                put(opening)
                glue = True
                if not word.endswith("o"):
                    closers.append(closing)
                continue
            if word in _CLOSERS:
                put(_CLOSERS[word], attached=True)
                continue
            if word == "Ns":
                glue = True
                continue
            if word == "Ap":
                put("'", attached=True)
                glue = True
                continue
            own = []
            while word in _WORDS and i < len(words) and words[i] not in _SPECIAL:
                own.append(words[i])
                i += 1
            if word == "Pf" and own:
                put(own[0])
                glue = True
            elif text := self._meaning(word, own):
                put(text)
                glue = word == "Fl" and not own and i < len(words)  # `Fl Fl long` is --long
        tail = []
        while pieces and pieces[-1] in _CLOSING and closers:  # `.Op Fl v .` ends with a full stop behind the bracket
            tail.insert(0, pieces.pop())
        return "".join([*pieces, *reversed(closers), *tail])

    def _meaning(self, macro: str, own: list[str]) -> str:
        match macro:
            case "Fl":
                return " ".join(f"-{word}" for word in own) or "-"
            case "Nm":
                return " ".join(own) or self._name
            case "Ar":
                return " ".join(own) or "file ..."
            case "Xr":
                return f"{own[0]}({own[1]})" if len(own) > 1 else " ".join(own)
            case "Fn":
                return f"{own[0]}({', '.join(own[1:])})" if own else ""
            case "In":
                return f"<{' '.join(own)}>"
            case "Tg" | "Lb":
                return ""
            case _ if macro in _SYSTEMS:
                return " ".join([_SYSTEMS[macro], *own])
            case _ if macro in _WORDS:
                return " ".join(own)
            case _:
                return macro
