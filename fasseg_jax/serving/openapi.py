"""The description of the server's interface, as OpenAPI 3.1 (https://spec.openapis.org/oas/v3.1.0)."""

from typing import Any

from fasseg_jax.serving.answers import FORMATS
from fasseg_jax.serving.limits import Limits
from fasseg_jax.serving.uploads import FORMATS as PHOTO_FORMATS

__all__ = ["openapi_document"]

REFUSALS = {
    "400": "The request is malformed, or its `format` does not exist.",
    "403": "A script of another site sent the request, or it names another host.",
    "408": "The photo did not arrive in time, or too slowly.",
    "411": "The request does not state the size of the photo.",
    "413": "The file or the photo is too large.",
    "415": "The file is no photo in a known format.",
    "422": "The photo is damaged.",
    "500": "The photo could not be segmented.",
}
COUNT = {"type": "integer", "minimum": 0}
CLASS = {
    "type": "object",
    "required": ["id", "name", "color", "share"],
    "additionalProperties": False,
    "properties": {
        "id": COUNT,
        "name": {"type": "string"},
        "color": {
            "description": "Red, green and blue.",
            "type": "array",
            "items": {"type": "integer", "minimum": 0, "maximum": 255},
            "minItems": 3,
            "maxItems": 3,
        },
        "share": {"description": "Of the photo's pixels.", "type": "number", "exclusiveMinimum": 0, "maximum": 1},
        "rle": {
            "description": "Only of `format=rle`: the mask of the class, column by column, as COCO counts runs.",
            "type": "object",
            "required": ["size", "counts"],
            "additionalProperties": False,
            "properties": {
                "size": {"type": "array", "items": COUNT, "minItems": 2, "maxItems": 2},
                "counts": {"type": "array", "items": COUNT},
            },
        },
    },
}
POLYGON = {
    "type": "object",
    "required": ["id", "name", "area", "box", "corners"],
    "additionalProperties": False,
    "properties": {
        "id": COUNT,
        "name": {"type": "string"},
        "area": {"description": "Pixels that the outline encloses.", **COUNT},
        "box": {"description": "x, y, width, height", "type": "array", "items": COUNT, "minItems": 4, "maxItems": 4},
        "corners": {
            "description": "x and y in pixels from the upper left corner of the photo, clockwise.",
            "type": "array",
            "items": {"type": "array", "items": COUNT, "minItems": 2, "maxItems": 2},
        },
    },
}
SEGMENTATION = {
    "type": "object",
    "required": ["width", "height", "seconds", "classes"],
    "additionalProperties": False,
    "properties": {
        "width": COUNT,
        "height": COUNT,
        "seconds": {"description": "That the network took.", "type": "number", "minimum": 0},
        "classes": {"description": "Those found, largest first.", "type": "array", "items": CLASS},
        "photo": {"description": "Only of `format=page`.", "type": "string", "pattern": "^data:image/jpeg;base64,"},
        "labels": {"description": "Only of `format=page`.", "type": "string", "pattern": "^data:image/png;base64,"},
        "polygons": {"description": "Only of `format=polygons`.", "type": "array", "items": POLYGON},
    },
}
HEALTH = {
    "type": "object",
    "required": ["status", "classes", "waiting"],
    "additionalProperties": False,
    "properties": {
        "status": {"enum": ["ok", "stopped"]},
        "classes": {"description": "How many the model has.", **COUNT},
        "waiting": {"description": "Photos that wait or are computed.", **COUNT},
    },
}
ERROR = {
    "type": "object",
    "required": ["error"],
    "additionalProperties": False,
    "properties": {"error": {"description": "A sentence.", "type": "string"}},
}


def openapi_document(limits: Limits) -> dict[str, Any]:
    """The document for a server with these limits."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "fasseg serve",
            "version": "1",
            "description": "Semantic segmentation of photos. To a bad request the server answers with a sentence.",
        },
        "paths": {
            "/": {"get": _get("The page for trying the model.", "text/html", {"type": "string"})},
            "/segment": {"post": _segment(limits)},
            "/health": {
                "get": _get(
                    "Whether photos are segmented.",
                    "application/json",
                    {"$ref": "#/components/schemas/Health"},
                    {"503": _response("No photo is segmented any more.", "application/json", "Health")},
                )
            },
            "/metrics": {"get": _get("Counters for Prometheus.", "text/plain", {"type": "string"})},
            "/openapi.json": {"get": _get("This document.", "application/json", {"type": "object"})},
        },
        "components": {"schemas": {"Segmentation": SEGMENTATION, "Health": HEALTH, "Error": ERROR}},
    }


def _segment(limits: Limits) -> dict[str, Any]:
    formats = "\n".join(f"- `{name}`: {answer.help}" for name, answer in FORMATS.items())
    return {
        "summary": "Segment a photo.",
        "parameters": [
            {
                "name": "format",
                "in": "query",
                "description": formats,
                "schema": {"type": "string", "enum": list(FORMATS), "default": next(iter(FORMATS))},
            }
        ],
        "requestBody": {
            "description": f"The file of the photo ({', '.join(PHOTO_FORMATS)}), as it is: at most {limits.megabytes} "
            f"MB and {limits.megapixels} million pixels. Its EXIF orientation is applied.",
            "required": True,
            "content": {"image/*": {"schema": {}}, "application/octet-stream": {"schema": {}}},
        },
        "responses": {
            "200": {
                "description": "The segmented photo.",
                "content": {
                    "application/json": {"schema": {"$ref": "#/components/schemas/Segmentation"}},
                    "image/png": {"schema": {}},
                },
            },
            **{status: _response(text, "application/json", "Error") for status, text in REFUSALS.items()},
            "503": {
                **_response("Too many photos at once; try again.", "application/json", "Error"),
                "headers": {"Retry-After": {"description": "In seconds.", "schema": {"type": "integer", "minimum": 1}}},
            },
        },
    }


def _get(summary: str, content_type: str, schema: dict[str, Any], others: dict[str, Any] | None = None) -> dict:
    content = {content_type: {"schema": schema}}
    return {"summary": summary, "responses": {"200": {"description": summary, "content": content}, **(others or {})}}


def _response(description: str, content_type: str, schema: str) -> dict[str, Any]:
    return {
        "description": description,
        "content": {content_type: {"schema": {"$ref": f"#/components/schemas/{schema}"}}},
    }
