"""Words that any text of some length has, by language; only their presence is asked for."""

from __future__ import annotations

from datatrove.pipeline.filters.gopher_quality_filter import STOP_WORDS as _GOPHER

STOP_WORDS: dict[str, frozenset[str]] = {
    "en": frozenset(_GOPHER),  # Rae et al. 2021, A1.1
    **{
        language: frozenset(words.split())
        for language, words in {
            # The eight or so most frequent function words of each, whatever its gender, case or number.
            "bg": "и в на да се не за от",
            "cs": "a v na se je že s z do to",
            "da": "og i at det en er til på af der",
            "de": "der die und in den zu das von mit nicht ist",
            "el": "και το να του η της με που την για",
            "es": "de la que el en y a los se del un",
            "fi": "ja on ei se että oli hän mutta kun niin",
            "fr": "de la le et les des à un en que est",
            "hi": "के में है की और से का को पर ने",
            "hu": "a az és hogy nem is egy volt meg de",
            "id": "yang dan di itu dengan untuk dari ini pada adalah",
            "it": "di e che la il un a per in non è",
            "nl": "de het een van en in is dat op te",
            "no": "og i det på som en er til av for",
            "pl": "i w na z do nie się to że jest",
            "pt": "de a o que e do da em um para não",
            "ro": "de și în a la cu pe nu o care",
            "ru": "и в не на что с как это по но",
            "sv": "och i att det som en på är av för",
            "tr": "ve bir bu da de için ile ne çok daha",
            "uk": "і в не на що з як це та до",
            "vi": "và của là có không được cho các những một",
        }.items()
    },
}
