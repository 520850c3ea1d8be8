"""Checks configurations against a JSON Schema: schema.py SCHEMA FILE… prints a line for each mistake."""

import json
import sys
import tomllib
from pathlib import Path

import jsonschema_rs
import yaml

schema, *files = map(Path, sys.argv[1:])
validator = jsonschema_rs.validator_for(json.loads(schema.read_text()))
for file in files:
    text = file.read_text()
    document = tomllib.loads(text) if file.suffix == ".toml" else yaml.safe_load(text)
    for error in validator.iter_errors(document):
        print(f"{file.name}: /{'/'.join(map(str, error.instance_path))}: {error.message}")
