"""Our tokenizer as the files of a Hugging Face folder, for `AutoTokenizer`."""

from __future__ import annotations

import json
from typing import Any

from megagpt.tokenizer.backends import BACKENDS, HuggingFaceBackend, SentencePieceBackend
from megagpt.tokenizer.chat import jinja_template
from megagpt.tokenizer.special import EOS, PAD
from megagpt.tokenizer.tokenizer import Tokenizer, TokenizerError


def huggingface_files(tokenizer: Tokenizer, max_length: int) -> dict[str, bytes]:
    """tokenizer.json with all control tokens at their ids, tokenizer_config.json with the chat template.

    Args:
        max_length: tokens that the model takes.

    Raises:
        TokenizerError: a vocabulary that the library would read otherwise.
    """
    from tokenizers import AddedToken

    library = _from_sentencepiece(tokenizer) if tokenizer.kind == "sentencepiece" else BACKENDS[tokenizer.kind].library(tokenizer.files)
    added = sorted((number, name) for name, number in tokenizer.special_ids.items() if number >= tokenizer.own_size)
    library.add_special_tokens([AddedToken(name, normalized=False) for _, name in added])
    for number, name in added:
        if library.token_to_id(name) != number:
            theirs = library.token_to_id(name)
            raise TokenizerError(f"control token {name} has id {number}, and {theirs} in Hugging Face's library: the vocabulary has gaps")
    names = {role: library.id_to_token(tokenizer.special_ids[token]) for role, token in (("eos_token", EOS), ("pad_token", PAD))}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", **names, "model_max_length": max_length, "clean_up_tokenization_spaces": False,
        "chat_template": jinja_template(tokenizer),
    }
    return {HuggingFaceBackend.MODEL: library.to_str(pretty=True).encode(), "tokenizer_config.json": (json.dumps(settings, indent=2) + "\n").encode()}


def _from_sentencepiece(tokenizer: Tokenizer) -> Any:
    """The same pieces as merges of the library's BPE with byte fallback: equal ids for every text without U+2581.

    sentencepiece joins the two neighbours whose union is the piece of the highest score; as a list of merges these are all
    cuts of each piece into two others, best piece first.
    """
    from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
    from tokenizers import AddedToken, Regex, decoders, models, normalizers
    from tokenizers import Tokenizer as Library

    if not SentencePieceBackend(tokenizer.files).keeps_text:
        raise TokenizerError("a sentencepiece vocabulary that changes its text (a space in front, normalisation) cannot be written as tokenizer.json")
    kinds = sentencepiece_model_pb2.TrainerSpec
    if sentencepiece_model_pb2.ModelProto.FromString(tokenizer.files[SentencePieceBackend.MODEL]).trainer_spec.model_type != kinds.BPE:
        raise TokenizerError(
            "a sentencepiece vocabulary other than BPE cannot be written as tokenizer.json: of two cuts that are equally likely "
            "Hugging Face's library may take the other"
        )
    model = SentencePieceProcessor(model_proto=tokenizer.files[SentencePieceBackend.MODEL])
    pieces = {model.id_to_piece(number): number for number in range(model.get_piece_size())}
    ordinary = [number for number in pieces.values() if not (model.is_control(number) or model.is_byte(number) or model.is_unknown(number))]
    known = {model.id_to_piece(number) for number in ordinary}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in (model.id_to_piece(number) for number in sorted(ordinary, key=lambda number: -model.get_score(number)))
        for cut in range(1, len(piece))
        if piece[:cut] in known and piece[cut:] in known
    ]
    library = Library(models.BPE(pieces, merges, unk_token=model.id_to_piece(model.unk_id()), fuse_unk=True, byte_fallback=True))
    library.normalizer = normalizers.Replace(Regex(" "), "\u2581")
    library.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    library.add_special_tokens([AddedToken(name, normalized=False) for name, number in pieces.items() if model.is_control(number)])
    return library
