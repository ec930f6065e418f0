"""Judges a bill of materials, from standard input, by CycloneDX's own library: its schema, strictly, and its model."""

import json
import sys

from cyclonedx.model.bom import Bom
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

text = sys.stdin.read()
if wrong := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
    sys.exit(str(wrong))
bom = Bom.from_json(json.loads(text))
bom.validate()
print(len(bom.components), "components")
