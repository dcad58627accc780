"""megagpt convert import | export | verify."""

from __future__ import annotations

import argparse
from pathlib import Path

TEACH = """\
import   SOURCE is a Hugging Face folder (config.json, *.safetensors, tokenizer files; GPT-2 and Llama families) or a GGUF file (architecture
         llama, any quantisation; needs pip install 'megagpt[gguf]'). FOLDER becomes a stage folder, with its only checkpoint in
         FOLDER/checkpoints/step_0: name FOLDER where a configuration or --checkpoint asks for a model to start from.
         A vocabulary without chat tokens gets them, and the embedding rows for them; one with <|im_start|> and <|im_end|> keeps ChatML.
         What we would compute otherwise than its authors (scaled rotary positions, sliding windows, biases in Llama, other activations) is refused.
export   CHECKPOINT (a folder step_<n>, a stage folder, or a stage's name with --run) becomes a folder for transformers' AutoModelForCausalLM and
         AutoTokenizer, its chat template included.
verify   compares every tensor and setting of CHECKPOINT with SOURCE; exit code 0 where they are the same, else 1.

  megagpt convert import ~/models/SmolLM2-135M-Instruct runs/smollm2
  megagpt convert verify runs/smollm2 ~/models/SmolLM2-135M-Instruct
  megagpt generate --checkpoint runs/smollm2 --prompts prompts.jsonl
  megagpt convert export runs/aligned/rlhf ~/models/aligned --dtype bf16
"""
DTYPES = ("fp32", "bf16", "fp16")


def add_arguments(parser: argparse.ArgumentParser, verb: str) -> None:
    parser.epilog = TEACH
    actions = parser.add_subparsers(dest="action", required=True, metavar="import|export|verify")

    def action(name: str, text: str) -> argparse.ArgumentParser:
        return actions.add_parser(name, help=text, description=text, epilog=TEACH, formatter_class=argparse.RawDescriptionHelpFormatter)

    bring = action("import", "a foreign model -> a checkpoint to start from")
    bring.add_argument("source", type=Path, metavar="SOURCE", help="Hugging Face folder or .gguf file")
    bring.add_argument("folder", type=Path, metavar="FOLDER", help="stage folder to write; must have no checkpoint yet")
    bring.add_argument("--tokenizer", type=Path, metavar="PATH", help="tokenizer folder or file (default: the source's own)")
    give = action("export", "a checkpoint -> a Hugging Face folder")
    check = action("verify", "whether a checkpoint is the model of a foreign folder or file")
    for parser_of_action in (give, check):
        parser_of_action.add_argument("checkpoint", metavar="CHECKPOINT", help="checkpoint folder, stage folder, or stage name with --run")
        parser_of_action.add_argument("--run", default="default", metavar="NAME", help="run below runs/ that CHECKPOINT names a stage of")
    give.add_argument("folder", type=Path, metavar="FOLDER", help="folder to write; must not exist")
    check.add_argument("source", type=Path, metavar="SOURCE", help="Hugging Face folder or .gguf file")
    check.add_argument("--tolerance", type=float, default=0.0, metavar="X", help="largest absolute difference that passes (default 0: equal numbers)")
    for parser_of_action in (bring, give):
        parser_of_action.add_argument("--dtype", choices=DTYPES, help="type of the weights (default: as they are stored; GGUF: fp32)")


def run(options: argparse.Namespace, verb: str) -> int | None:
    return {"import": _import, "export": _export, "verify": _verify}[options.action](options)


def _import(options: argparse.Namespace) -> None:
    from megagpt.checkpoint.layout import identity
    from megagpt.convert.import_model import import_model
    from megagpt.convert.source import open_source
    from megagpt.model import param_map
    from megagpt.model.layout import DTYPES as TORCH_TYPES
    from megagpt.model.shape import ModelShape
    from megagpt.tokenizer.tokenizer import load_tokenizer

    tokenizer = None if options.tokenizer is None else load_tokenizer(options.tokenizer)
    with open_source(options.source) as source:
        checkpoint = import_model(source, options.folder, TORCH_TYPES.get(options.dtype), tokenizer)
        model = source.model
    print(
        f"{checkpoint}  [{identity(checkpoint)}]: {model.family}, {param_map.num_parameters(ModelShape(model)):,} parameters, "
        f"context {model.max_sequence_length}, {model.vocab_size} rows of vocabulary"
    )


def _export(options: argparse.Namespace) -> None:
    from megagpt.convert.export_model import export_model
    from megagpt.model.layout import DTYPES as TORCH_TYPES

    checkpoint = _open_checkpoint(options)
    export_model(checkpoint, options.folder, TORCH_TYPES.get(options.dtype))
    print(f"{checkpoint.path} -> {options.folder}")


def _verify(options: argparse.Namespace) -> int:
    from megagpt.config.load import ConfigError
    from megagpt.convert.compare import compare
    from megagpt.convert.source import open_source

    if not options.tolerance >= 0:
        raise ConfigError(f"--tolerance {options.tolerance:g}: must be 0 or more")
    with open_source(options.source) as source:
        found = compare(_open_checkpoint(options), source)
    print("\n".join(found.settings), end="\n" if found.settings else "")
    rows = f"; {found.only_in_one} vocabulary rows that only one of them has" if found.only_in_one else ""
    print(f"{found.num_tensors} tensors, {found.num_different} of them different; largest difference {found.difference:.3g} in {found.worst}{rows}")
    same = not found.settings and found.difference <= options.tolerance
    print("the same model" if same else "NOT the same model")
    return 0 if same else 1


def _open_checkpoint(options: argparse.Namespace):
    from megagpt.checkpoint.layout import find_checkpoint
    from megagpt.checkpoint.load import Checkpoint
    from megagpt.config.schema import RunConfig
    from megagpt.runtime.run_folder import RunFolder

    return Checkpoint.open(find_checkpoint(options.checkpoint, RunFolder(RunConfig(name=options.run))))
