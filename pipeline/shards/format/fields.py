"""What is known of a sample besides image and label, as its `.json` in a tar holds it.

`key` is how the sample is named to users. All else is the source's own, such as landmarks or a quality, and is carried
along as it is, whatever becomes of the image.
"""

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from pipeline.files import with_nulls

Fields = Mapping[str, Any]  # names, and values as JSON has them
NO_FIELDS: Fields = MappingProxyType({})


def to_json(key: str, fields: Fields) -> bytes:
    """The JSON of a sample; a `key` among its fields, which another tool gave it, counts more than ours."""
    if not fields:
        return f'{{"key": {json.dumps(key)}}}'.encode()
    return json.dumps(with_nulls({**fields, "key": fields.get("key") or key})).encode()


def of_json(text: bytes) -> Fields:
    """The fields in the JSON of a sample, `key` included; none if it is no JSON object."""
    try:
        fields = json.loads(text)
    except ValueError:
        return NO_FIELDS
    return fields if isinstance(fields, dict) else NO_FIELDS
