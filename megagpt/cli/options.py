"""Options that all verbs with a configuration share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TypeVar

from megagpt.config.load import load_config
from megagpt.config.reference import describe_keys
from megagpt.config.schema import Frozen
from megagpt.config.show import to_yaml

ConfigClass = TypeVar("ConfigClass", bound=Frozen)


def add_config_options(parser: argparse.ArgumentParser, config_class: type[Frozen]) -> None:
    """--config, --set, --print-config, and the keys of the configuration below the help."""
    parser.add_argument("--config", required=True, type=Path, metavar="FILE", help="YAML configuration")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="override one key; may be repeated")
    parser.add_argument("--print-config", action="store_true", help="print the configuration with all defaults filled in, and stop")
    parser.epilog = "\n".join([(config_class.__doc__ or "").strip(), "", "configuration keys:", *describe_keys(config_class)])


def read_config(options: argparse.Namespace, config_class: type[ConfigClass]) -> ConfigClass | None:
    """The configuration, or None where it was only to be printed."""
    config = load_config(config_class, options.config, options.set)
    if options.print_config:
        print(to_yaml(config), end="")
        return None
    return config
